"""What keys do: actions, workers, child processes."""
