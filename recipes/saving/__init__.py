"""How a run folder is written and read, so that a kill at any moment loses nothing."""
