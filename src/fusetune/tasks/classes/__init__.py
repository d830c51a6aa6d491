"""Classes: one of several, any number of several, or one of an order."""
