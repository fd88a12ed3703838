"""A scan and a model in, a mask on exactly the scan's grid out."""
