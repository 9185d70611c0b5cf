"""Tapes of runs with images that ship: traced at some sizes of image, solved, and proved."""
