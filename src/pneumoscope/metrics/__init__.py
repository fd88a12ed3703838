"""Scores from arrays: counts first, pure functions after, every empty case written down."""
