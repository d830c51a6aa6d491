"""Kinds of column: from cells to tensors to tokens."""
