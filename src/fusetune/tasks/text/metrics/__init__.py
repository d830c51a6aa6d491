"""Metrics of written texts, computed from counts that are summed over rows."""
