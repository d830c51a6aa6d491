"""Boosted trees beside the network: what `fusion: stack` adds."""
