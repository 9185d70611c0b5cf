"""Unsloth's own code on fake CUDA tensors: the installed packages are called, in a process that imports them first."""
