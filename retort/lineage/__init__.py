"""Where a student came from, back to the teacher and the data, and the history of a single row."""
