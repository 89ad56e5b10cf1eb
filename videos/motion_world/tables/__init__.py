"""Tables of the motions of motion world."""
