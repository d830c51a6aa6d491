"""Checkpoints: how a training is saved, verified and continued."""
