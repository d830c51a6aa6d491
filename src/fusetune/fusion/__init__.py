"""Fusions: one file each, from columns' tokens to one vector a row."""
