"""Artifact types. Each kind of artifact has one, and only its module reads and writes the files."""
