"""What a plan shows beside its run: other objectives and cards, lengths and batches, and what nobody says of them."""
