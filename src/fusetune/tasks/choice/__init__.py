"""Multiple choice: which of a row's own choices is right."""
