"""Cells of numbers, categories and dates as features, without torch: for the modalities and `fusetune.runtime`."""
