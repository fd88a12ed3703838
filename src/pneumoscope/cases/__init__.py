"""Scans to case folders: read, segment, measure, write; one scan or many."""
