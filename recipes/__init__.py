"""What a person runs: train, evaluate, compare, demo; each is a script that may be copied."""
