"""Benchmark scripts that start recipes as processes and write results as JSON."""
