"""The ways in which an encoder's pass over a batch is computed, and the choice among them."""
