"""Helpers of two-pass training: memory measurement, recomputation and gradient averaging."""
