"""What other cards hold a run, and what it costs where."""
