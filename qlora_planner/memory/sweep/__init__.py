"""Allocated bytes of a million runs from one trace."""
