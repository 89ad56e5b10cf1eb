"""The parameter-efficiency benchmark: a matrix of trainings, measured in a process each, and its report."""
