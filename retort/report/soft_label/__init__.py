"""The soft-label recipe's report: facts, tables, picture."""
