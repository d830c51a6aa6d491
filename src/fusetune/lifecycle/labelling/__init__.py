"""Active learning: choose the rows of an unlabelled pool that a person labels next."""
