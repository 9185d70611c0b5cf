"""TRL's own files."""
