"""What fits on a card over the whole catalogue."""
