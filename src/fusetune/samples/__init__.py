"""Tables made to order, with a known best reachable accuracy for every set of columns."""
