"""Settings: one file a section."""
