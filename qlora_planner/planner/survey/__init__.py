"""Every model on a card, and tables over the catalogue."""
