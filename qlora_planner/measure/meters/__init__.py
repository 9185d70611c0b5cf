"""What a process holds, sampled and attributed."""
