"""Small frozen steps between a scan and what a network sees, each knowing the way back."""
