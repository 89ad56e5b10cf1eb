"""The store: clips and frames decoded once, read back without decoding a video."""
