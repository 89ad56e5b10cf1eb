"""Annotations: segments of videos with a label, and the formats of the tools that people draw them with."""
