"""Where a backbone comes from: hub ids, folders and the embedded package, and the checks before a file is read."""
