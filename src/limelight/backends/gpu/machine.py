"""Properties of this machine: Triton, its interpreter, the generation and the multiprocessors of a GPU."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from .compatibility import missing, version

__all__ = ["generation", "interpreted", "missing", "processors", "reasons_against", "status"]


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU: slow, for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def reasons_against(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why Triton kernels cannot run on a device with a dtype; empty where they can."""
    reasons = [missing()] if missing() else []
    if interpreted():
        if device.type != "cpu":
            reasons.append(f"the tensors are on {device}; Triton's interpreter (TRITON_INTERPRET) runs on the CPU")
        if dtype is torch.bfloat16:
            reasons.append("Triton's interpreter computes bfloat16 products wrong; use float16 or float32 there")
    elif device.type != "cuda":
        reasons.append(f"the tensors are on {device}; Triton kernels run on CUDA and ROCm GPUs")
    return reasons


def status() -> str:
    """Whether Triton and a GPU are available, in words."""
    if missing():
        return f"not available: {missing()}"
    have = "Triton {}.{}".format(*(version() or (0, 0)))
    if interpreted():
        return f"{have}, interpreted on the CPU"
    if not torch.cuda.is_available():
        return f"not usable: {have} is installed, but PyTorch sees no GPU"
    return f"{have} on {torch.cuda.get_device_name()}"


@lru_cache(maxsize=16)
def generation(device: torch.device) -> str:
    """The key of a device in the tuning tables: ``interpreter``, ``ampere``, ``hopper``, ``blackwell``, ``rocm`` or
    ``other``. Where a table has no line for it, that for ``other`` is taken."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "rocm"
    major, _ = torch.cuda.get_device_capability(device)
    return {8: "ampere", 9: "hopper", 10: "blackwell"}.get(major, "other")


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    """The number of multiprocessors of the GPU; 1 on the CPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
