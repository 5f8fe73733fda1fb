"""What this machine has: Triton or not, its interpreter, the generation of a GPU."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

from .compatibility import missing, version

__all__ = ["generation", "interpreted", "missing", "processors", "reasons_against", "status"]


def interpreted() -> bool:
    """Kernels run in Triton's interpreter, on the CPU: slow, and for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def reasons_against(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Why Triton's kernels cannot run on a device with a dtype."""
    reasons = [missing()] if missing() else []
    if interpreted():
        if device.type != "cpu":
            reasons.append(f"the tensors lie on {device}; Triton's interpreter (TRITON_INTERPRET) runs on the CPU")
        if dtype is torch.bfloat16:
            reasons.append("Triton's interpreter computes bfloat16 products wrong; use float16 or float32 there")
    elif device.type != "cuda":
        reasons.append(f"the tensors lie on {device}; it runs on CUDA and ROCm GPUs")
    return reasons


def status() -> str:
    """Whether Triton and a GPU are there."""
    if missing():
        return f"not there: {missing()}"
    have = "Triton {}.{}".format(*(version() or (0, 0)))
    if interpreted():
        return f"{have}, interpreted on the CPU"
    if not torch.cuda.is_available():
        return f"not usable: {have} is installed, but PyTorch sees no GPU"
    return f"{have} on {torch.cuda.get_device_name()}"


@lru_cache(maxsize=16)
def generation(device: torch.device) -> str:
    """A row of the tuning table: ``interpreter``, ``ampere``, ``hopper``, ``blackwell`` or ``other``."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return "other"
    major, _ = torch.cuda.get_device_capability(device)
    return {8: "ampere", 9: "hopper", 10: "blackwell"}.get(major, "other")


@lru_cache(maxsize=16)
def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU, which a short call should fill."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
