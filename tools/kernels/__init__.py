"""What the kernels of a traced step multiply, move and launch."""
