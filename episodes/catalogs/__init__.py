"""What videos there are: lists and splits, matching them to a disk, checking every file."""
