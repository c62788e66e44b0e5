"""What a run did, from its artifacts alone: facts (`Summary`), pictures, and pages for people."""
