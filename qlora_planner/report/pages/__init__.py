"""Answers written to files."""
