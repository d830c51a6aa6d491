"""One fit from table to report: what `api.fit` runs."""
