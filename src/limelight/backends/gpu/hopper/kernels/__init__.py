"""The Gluon kernels for Hopper, and the small Triton kernels that plan their work."""
