"""What a task has the report draw: kinds of panels as plain data, and builders that several tasks share."""
