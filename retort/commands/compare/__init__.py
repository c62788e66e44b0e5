"""`retort compare`: two runs, configs or registered students, on the same test rows."""
