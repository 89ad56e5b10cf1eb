"""Moving shapes: generated videos in which only motion tells the classes apart."""
