"""The model families: how encoders, fusions and heads are put together."""
