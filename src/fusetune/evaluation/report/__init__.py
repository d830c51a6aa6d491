"""The report: what a run found, in words, pictures and tables."""
