"""Augmentation of train rows: random changes of a cell that keep its target."""
