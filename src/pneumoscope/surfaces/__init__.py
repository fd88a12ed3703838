"""From masks to what 3D programs read."""
