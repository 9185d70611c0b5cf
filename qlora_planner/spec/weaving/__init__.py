"""Tapes of runs that ship none, woven of those that do."""
