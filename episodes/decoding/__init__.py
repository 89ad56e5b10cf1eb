"""How frames come out of files: one protocol, one file for each decoder."""
