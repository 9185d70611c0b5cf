"""Unsloth as a trainer: what it is told, and how it loads a model. Its installed package is called."""
