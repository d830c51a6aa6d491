"""The saved model folder and what is done with it."""
