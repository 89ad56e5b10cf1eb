"""Decoding of video files: one protocol, and one module per decoder."""
