"""An HTTP server of a tuned model: `fusetune serve`."""
