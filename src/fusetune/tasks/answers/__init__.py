"""Extractive question answering: the part of a context that answers a question, or none."""
