"""Benchmarks: each prints its table and keeps its figures in `benchmarks/results`."""
