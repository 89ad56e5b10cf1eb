"""Moving shapes: a generated data set whose classes differ in motion alone."""
