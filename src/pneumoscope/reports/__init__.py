"""Figures and offline HTML pages."""
