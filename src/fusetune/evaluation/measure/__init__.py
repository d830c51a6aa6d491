"""Measures systems on the same rows: metrics with intervals, slices, attacks, retrieval."""
