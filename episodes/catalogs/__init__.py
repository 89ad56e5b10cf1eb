"""The videos of a data set: lists and splits, matching them to files on disk, and checking every file."""
