"""What is checked before anything of a stranger's is read."""
