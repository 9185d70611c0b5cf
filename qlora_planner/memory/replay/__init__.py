"""A traced step, replayed through the allocator."""
