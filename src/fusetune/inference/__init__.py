"""Batched prediction and frozen features."""
