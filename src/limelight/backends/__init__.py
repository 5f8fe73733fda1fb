"""The backends of attention, one module each, and `choose`, which selects the one for a call."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ..tensors.shapes import wrong
from . import native, reference
from .contract import Backend, BackendError, Call, Yields

if TYPE_CHECKING:
    #: In the order in which they are tried; the last one serves every call.
    BACKENDS: tuple[Backend, ...]
    #: These round the inputs to 8 bits, so they run only when they are named.
    ONLY_NAMED: tuple[Backend, ...]


@lru_cache(maxsize=1)
def _found() -> dict[str, tuple[Backend, ...]]:
    """`BACKENDS` and `ONLY_NAMED`, with the backends of GPUs, which only calls that `native` does not serve need."""
    from .gpu import flash1, flash2
    from .gpu.hopper import flash3, flash3_float8

    return {"BACKENDS": (native, flash3, flash2, flash1, reference), "ONLY_NAMED": (flash3_float8,)}


def __getattr__(name: str) -> Any:
    if name in ("BACKENDS", "ONLY_NAMED"):
        return _found()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), "BACKENDS", "ONLY_NAMED"})


@lru_cache(maxsize=1)
def _after_native() -> tuple[tuple[Backend, Yields | None], ...]:
    """Each with itself as `Yields` if it can be passed over in favour of a faster one."""
    return tuple((backend, backend if isinstance(backend, Yields) else None) for backend in _found()["BACKENDS"][1:])


@lru_cache(maxsize=1)
def _by_name() -> dict[str, Backend]:
    return {backend.NAME: backend for some in _found().values() for backend in some}


def choose(call: Call, name: str | None) -> Backend:
    """The backend of that name; for ``None`` and ``"auto"`` the first that serves the call and yields to no other.

    Raises:
        ArgumentError: no backend has that name.
        BackendError: the named one cannot serve the call; the message says why.
    """
    if name is None or name == "auto":
        if not native.reasons_against(call):
            return native
        for candidate, yields in _after_native():
            if not (candidate.reasons_against(call) or (yields and yields.reasons_to_pass_over(call))):
                return candidate
    named = _by_name()
    if isinstance(name, str) and name in named:
        backend = named[name]
        reasons = backend.reasons_against(call)
        if reasons:
            raise BackendError(f"backend {name!r} cannot serve this call: {'; '.join(reasons)}.")
        return backend
    known = ", ".join(map(repr, named))
    raise wrong("backend", f"must be None, 'auto' or one of {known}", f"it is {name!r}", "None chooses the fastest.")


def passed_over(call: Call, backend: Backend) -> list[str]:
    """Why `choose` passes over a backend that is not named: it cannot serve the call, or the next one is faster."""
    return backend.reasons_against(call) or (backend.reasons_to_pass_over(call) if isinstance(backend, Yields) else [])
