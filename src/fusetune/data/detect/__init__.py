"""What a table's columns are, judged by their names and cells."""
