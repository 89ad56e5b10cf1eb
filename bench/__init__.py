"""What is measured: scripts that start recipes as processes, and their results as JSON."""
