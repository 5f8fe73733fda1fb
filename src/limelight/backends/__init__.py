"""How attention is computed: one module for each backend, and the one place that chooses among them."""

from __future__ import annotations

from ..shapes import wrong
from . import native, reference
from .contract import Backend, BackendError, Call

# In the order in which they are tried.
BACKENDS: tuple[Backend, ...] = (native, reference)


def choose(call: Call, name: str | None) -> Backend:
    """The first backend that can serve the call; a named one is never replaced.

    Raises:
        ArgumentError: no backend has that name.
        BackendError: the named one, or every one, cannot serve the call; the message says why.
    """
    if name is None or name == "auto":
        for backend in BACKENDS:
            if not backend.reasons_against(call):
                return backend
        raise BackendError("no backend can serve this call.\n" + _all_reasons(call) + f"\n{_WAY_OUT}")
    for backend in BACKENDS:
        if name == backend.NAME:
            reasons = backend.reasons_against(call)
            # Whoever names the reference has said that its memory is meant.
            if reasons and backend is not reference:
                raise BackendError(f"backend {name!r} cannot serve this call: {'; '.join(reasons)}.")
            return backend
    known = ", ".join(repr(backend.NAME) for backend in BACKENDS)
    raise wrong("backend", f"must be None, 'auto' or one of {known}", f"it is {name!r}", "None chooses the fastest.")


def _all_reasons(call: Call) -> str:
    return "\n".join(f"  {backend.NAME}: {'; '.join(backend.reasons_against(call))}" for backend in BACKENDS)


_WAY_OUT = (
    "Make the call smaller (fewer rows or heads at a time), drop what the faster backend refuses, or name "
    'backend="reference" to take the memory knowingly.'
)
