"""Where a student came from: everything back to the teacher and the data, and the way of a single row."""
