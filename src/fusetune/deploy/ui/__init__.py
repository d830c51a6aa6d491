"""A web page to try a tuned model: `fusetune ui`."""
