"""Attention on GPUs in Triton. Nothing of Triton is imported before a call reaches a kernel."""
