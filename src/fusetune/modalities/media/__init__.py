"""Cells that hold files: read their bytes, decode images and sounds."""
