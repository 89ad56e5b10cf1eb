"""Configuration, model and data factories, and the run folder, shared by all commands."""
