"""Run an experiment: stages, transfer matrix, forgetting, report."""
