"""Two-pass training: the exact gradient of a task in a fraction of its memory."""
