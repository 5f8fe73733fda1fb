"""Attention on Hopper GPUs in Gluon. Nothing of Triton is imported before a call reaches a kernel."""
