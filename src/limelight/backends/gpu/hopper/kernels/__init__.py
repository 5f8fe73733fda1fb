"""Kernels in Gluon, and the small ones in Triton that plan their work."""
