"""Search in a catalogue by the vectors of a tuned model."""
