"""Galleries: enrolled actions, and the recognition of clips and long videos against them."""
