"""Tables, schemas, splits and batches."""
