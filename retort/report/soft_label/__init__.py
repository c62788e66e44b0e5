"""The score flow's report: facts, table, pages, picture."""
