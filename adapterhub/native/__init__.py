"""Kernels for what PyTorch does in too many passes, compiled at first use; where that fails, PyTorch does it."""
