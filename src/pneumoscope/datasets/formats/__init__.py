"""Dataset layouts of other tools."""
