"""What comes after a training: its adapters merged into their base, a prompt tried on it."""
