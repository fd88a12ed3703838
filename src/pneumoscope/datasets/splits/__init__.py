"""Splits into training, validation and test parts."""
