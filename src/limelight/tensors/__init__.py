"""Checks of PyTorch's tensors: their sizes, kinds and storage, and which tracer is active."""
