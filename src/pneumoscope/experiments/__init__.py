"""Recipes: the papers' experiments as data, every number with its source."""
