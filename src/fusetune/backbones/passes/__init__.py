"""Strategies of computing an encoder's forward pass over a batch, and the choice among them."""
