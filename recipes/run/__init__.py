"""What all commands share: configuration, model and data factories, the run folder."""
