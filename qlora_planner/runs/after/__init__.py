"""What people do with a trained run: merge its adapters into the base, try a prompt on it."""
