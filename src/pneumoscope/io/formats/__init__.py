"""Readers and writers of the other file formats."""
