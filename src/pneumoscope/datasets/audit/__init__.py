"""Faults in the annotations of a dataset: found on the files as they lie there, ranked, and repaired in a copy."""
