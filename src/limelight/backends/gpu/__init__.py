"""FlashAttention on GPUs: `flash1` and `flash2` in Triton, `hopper.flash3` in Gluon, on a shared host side.

Triton is not imported before a call reaches a kernel.
"""
