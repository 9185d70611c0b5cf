"""Functions that reward completions, from a file of the user or of trl."""
