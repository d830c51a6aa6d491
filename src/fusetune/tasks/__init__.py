"""Tasks: one file each, from a target column to a head, a loss, predictions and metrics."""
