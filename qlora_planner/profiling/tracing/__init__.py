"""Reading a training step's memory from the installed model code, run on fake CUDA tensors."""
