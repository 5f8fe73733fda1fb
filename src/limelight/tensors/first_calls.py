"""PyTorch's elementary functions are called once by a single thread before several threads call them.

PyTorch computes `FUNCTIONS` of dense float32 and float64 tensors on CPUs by Intel's MKL, which chooses its code for the
processor in the first call. With MKL 2024.2, which is in PyTorch's wheels, a thread that calls while another one makes
this choice may compute its whole part of a tensor by other code, with relative errors up to 3e-4. It was seen in one of
ten processes in which two threads made the first call. Every function is called, since MKL chooses for each of them
(https://github.com/pytorch/pytorch/issues/188792).
"""

from __future__ import annotations

import torch

#: Those that PyTorch leaves to MKL (``aten/src/ATen/cpu/vml.h``).
FUNCTIONS = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp",
    "log", "log10", "log2", "sin", "sqrt", "tan", "tanh", "trunc",
)  # fmt: skip


def call_each() -> None:
    """Call each function on one element, which takes six milliseconds in a new process."""
    for dtype in (torch.float32, torch.float64):
        half = torch.full((1,), 0.5, dtype=dtype, device="cpu")
        for name in FUNCTIONS:
            getattr(torch, name)(half)
