"""Triples: the entities of a text and the relations between them, by one model."""
