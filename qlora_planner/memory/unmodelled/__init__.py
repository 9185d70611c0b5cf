"""What no figure counts, and when it takes a verdict away."""
