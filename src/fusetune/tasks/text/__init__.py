"""Written answers: the task whose target is a text, and its metrics."""
