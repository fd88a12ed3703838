"""Public sets of chest radiographs, and your own: pictures with a class, a patient and a source."""
