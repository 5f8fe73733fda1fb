"""FlashAttention on GPUs: `flash1` and `flash2` in Triton, `hopper.flash3` in Gluon, over shared tables and kernels.

Nothing of Triton is imported before a call reaches a kernel.
"""
