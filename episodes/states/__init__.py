"""What is kept of an encoded video, and how tasks are answered from it."""
