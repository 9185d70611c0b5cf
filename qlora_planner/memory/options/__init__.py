"""Options that are left open become a run that works; what the stack refuses."""
