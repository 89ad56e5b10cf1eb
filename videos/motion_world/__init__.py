"""Motion world: a generated data set of bodies, hands and things whose classes differ in motion alone."""
