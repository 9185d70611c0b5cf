"""What CUDA does otherwise than a fake tensor."""
