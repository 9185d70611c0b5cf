"""Traces that are kept from before, and those that ship of runs with images."""
