"""Benchmarks: speed, memory and accuracy tables."""
