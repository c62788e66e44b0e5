"""The report's pictures. Each is drawn for people who read it on a phone: narrow, with a title, axes with units, and a
sentence that says what to see."""
