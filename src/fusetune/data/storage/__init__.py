"""Arrays, decoded examples and features that need not fit into memory."""
