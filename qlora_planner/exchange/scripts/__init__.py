"""Scripts and notebooks that run a plan."""
