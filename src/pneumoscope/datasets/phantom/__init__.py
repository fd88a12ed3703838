"""Synthetic chest CTs with exact masks."""
