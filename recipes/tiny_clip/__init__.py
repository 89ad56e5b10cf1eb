"""The training of the bundled tiny-clip."""
