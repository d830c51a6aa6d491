"""How one step updates the weights."""
