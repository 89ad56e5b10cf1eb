"""What the training loop consists of."""
