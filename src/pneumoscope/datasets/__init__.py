"""Datasets as cases: scans, reference masks, patients, licences and splits."""
