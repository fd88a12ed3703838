"""Units of long work: what identifies a result, when a kept one is still valid, who works in a folder."""
