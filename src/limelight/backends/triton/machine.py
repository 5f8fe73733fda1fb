"""What this machine has: Triton or not, its interpreter, the generation of a GPU. Triton's versions meet here only."""

from __future__ import annotations

import os
from functools import lru_cache
from importlib import metadata, util

import torch

OLDEST = (3, 5)  # the release from which on kernels take tuples and Gluon exists


@lru_cache(maxsize=1)
def version() -> tuple[int, int] | None:
    """Triton's version as (major, minor), without importing it; ``None`` where it is not installed."""
    if util.find_spec("triton") is None:
        return None
    for name in ("triton", "pytorch-triton", "triton-windows"):
        try:
            major, minor = metadata.version(name).split(".")[:2]
        except metadata.PackageNotFoundError:
            continue
        return int(major), int(minor)
    return None


def interpreted() -> bool:
    """Kernels run in Triton's interpreter, on the CPU: slow, and for tests."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def missing() -> str:
    """Why there is no Triton to use; empty when there is."""
    have = version()
    if have is None:
        return "Triton is not installed (pip install triton; it comes with PyTorch's CUDA builds)"
    if have < OLDEST:
        return f"Triton {have[0]}.{have[1]} is installed; it needs {OLDEST[0]}.{OLDEST[1]} or later"
    return ""


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
