"""`retort review`: rows for people to label, and what they answered."""
