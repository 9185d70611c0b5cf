"""Weights, adapters and optimizer states: their bytes, and loading them."""
