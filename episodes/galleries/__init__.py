"""What a gallery of actions consists of, and what it says of clips and long videos."""
