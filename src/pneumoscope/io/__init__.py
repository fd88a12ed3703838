"""The border: files in, files out. Everything inside is RAS+, millimetres and Hounsfield units."""
