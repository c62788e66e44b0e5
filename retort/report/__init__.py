"""Reports on a run from its artifacts alone: facts (`Summary`), pictures and pages."""
