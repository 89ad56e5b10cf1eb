"""Commands such as train, evaluate, compare and demo. Each is a script that may be copied."""
