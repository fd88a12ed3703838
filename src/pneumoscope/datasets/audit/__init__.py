"""Faults in the annotations of a data set: found on the files as they lie there, ranked, and repaired in a copy."""
