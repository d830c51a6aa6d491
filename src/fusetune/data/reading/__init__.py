"""Files and in-memory tables to Arrow batches."""
