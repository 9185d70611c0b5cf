"""Seconds of a step, kernel by kernel."""
