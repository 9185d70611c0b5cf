"""A dataset's lengths as batches: padding, packing, epochs, widths."""
