"""What the library has to know of PyTorch's tensors: sizes, kinds, storage, and which tracer is active."""
