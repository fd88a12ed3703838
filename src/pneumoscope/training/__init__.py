"""One training loop, the tasks that run on it, losses, augmentation and checkpoints."""
