"""What a run really stores in 4-bit."""
