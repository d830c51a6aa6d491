"""The life of a tuned model after its fit: watching new data."""
