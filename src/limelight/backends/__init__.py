"""How attention is computed: one module for each backend, and the one place that chooses among them."""

from __future__ import annotations

from ..tensors.shapes import wrong
from . import native, reference
from .contract import Backend, BackendError, Call
from .gpu import flash1, flash2
from .gpu.hopper import flash3, flash3_float8

# In the order in which they are tried; the last one serves everything.
BACKENDS: tuple[Backend, ...] = (native, flash3, flash2, flash1, reference)
# These change the numbers, so they run only when they are named.
ONLY_NAMED: tuple[Backend, ...] = (flash3_float8,)


def choose(call: Call, name: str | None) -> Backend:
    """The first backend that can serve the call and is not known to be slower than the next; a named one is never
    replaced.

    Raises:
        ArgumentError: no backend has that name.
        BackendError: the named one cannot serve the call; the message says why.
    """
    if name is None or name == "auto":
        for backend in BACKENDS:
            if not passed_over(call, backend):
                return backend
    for backend in BACKENDS + ONLY_NAMED:
        if name == backend.NAME:
            reasons = backend.reasons_against(call)
            if reasons:
                raise BackendError(f"backend {name!r} cannot serve this call: {'; '.join(reasons)}.")
            return backend
    known = ", ".join(repr(backend.NAME) for backend in BACKENDS + ONLY_NAMED)
    raise wrong("backend", f"must be None, 'auto' or one of {known}", f"it is {name!r}", "None chooses the fastest.")


def passed_over(call: Call, backend: Backend) -> list[str]:
    """Why ``None`` does not choose a backend: it cannot serve the call, or the next is known to be faster."""
    return backend.reasons_against(call) or (flash3.slower(call) if backend is flash3 else [])
