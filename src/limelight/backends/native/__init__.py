"""Our C++ kernels on CPUs: the library of ``native/`` as a backend.

- `library`: loads it, and calls it. The one module that uses `ctypes`.
- `structures`: the structures of ``native/include/limelight.h``, compared with the library's own when it is loaded.
- `addresses`, `call`, `rules`, `observing`: tensors, calls, score rules and observations as it reads them.
- `attention`: the operator.
"""

from __future__ import annotations

from . import library
from .attention import backward, captured, forward, reasons_against_backward
from .call import memory, reasons_against, reasons_against_eight_bits, reasons_against_pages
from .library import (
    available,
    instruction_set,
    instruction_sets,
    peak,
    select_instruction_set,
    use_huge_pages,
    why_missing,
)
from .rules import reasons_against as reasons_against_rules

__all__ = [
    "ABOUT",
    "NAME",
    "available",
    "backward",
    "captured",
    "forward",
    "instruction_set",
    "instruction_sets",
    "memory",
    "peak",
    "reasons_against",
    "reasons_against_backward",
    "reasons_against_eight_bits",
    "reasons_against_pages",
    "reasons_against_rules",
    "select_instruction_set",
    "status",
    "use_huge_pages",
    "why_failing",
    "why_missing",
]

NAME = "native"
ABOUT = "C++ kernels on CPUs, memory linear in the length"


def why_failing() -> str:
    """Why every call of the library fails here: ``LIMELIGHT_ISA`` names what the machine cannot run; empty if none."""
    return library.error_message() if available() and not instruction_set() else ""


def status() -> str:
    """Whether the backend is there, with which instruction set, or what is missing and what that costs."""
    if not available():
        return f"not available: {why_missing()}"
    if failing := why_failing():
        return f"not usable: {failing}"
    isa = instruction_set()
    # `wide` serves tests alone.
    others = [name for name in instruction_sets() if name not in (isa, "wide")]
    threads = "PyTorch's OpenMP threads" if library.shares_threads() else "threads of its own"
    return f"{ABOUT}; instruction set {isa} (also: {', '.join(others) or 'none'}), {threads}"
