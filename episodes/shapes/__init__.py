"""Moving shapes: generated videos whose classes differ in motion only."""
