"""Named entities and slots: spans of a text, each with a label."""
