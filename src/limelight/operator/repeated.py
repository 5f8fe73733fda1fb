"""A call that is repeated with other tensors of the same form, as by the layers of a model in one step."""

from __future__ import annotations

from torch import Tensor

from ..backends import choose, native
from ..backends.contract import Call, reasons_against_pages
from ..backends.native import attention as kernels
from ..forms.settings import Settings
from .calling import prepare, run, why_autograd


class Repeated:
    """Attention of one form without derivatives, which is checked and lowered once.

    The first call is that of `limelight.attention`. The next ones, if their tensors have the same dtypes, devices and
    shapes and the native library computes them, only read addresses and strides. In a step of vLLM that saves 50
    microseconds a layer: Python code is slow where the products between two calls have emptied the caches of it.

    Args:
        settings: of the call, its sink left out; `observe` is not allowed.
    """

    def __init__(self, settings: Settings) -> None:
        assert settings.observe is None
        self._settings = settings
        self._call: Call | None = None

    def into(self, output: Tensor, query: Tensor, key: Tensor, value: Tensor, sink: Tensor | None) -> None:
        """Write the attention of three ``(B, H, L, D)`` tensors and a sink ``(Hq,)`` to ``output`` ``(B, Hq, Lq, Dv)``.

        Raises:
            ArgumentError: an argument breaks a rule of `limelight.attention`.
            torch.OutOfMemoryError: the system has no memory for the scratch of a kernel.
        """
        call = self._call
        if call is not None and output.stride(3) == 1 and _alike(call, query, key, value, sink):
            kernels.forward_into(call.replace(query=query, key=key, value=value, sink=sink), output)
            return
        call = prepare(query, key, value, self._settings.replace(sink=sink))
        output.copy_(run(call, None).output)
        gathers = call.pages is not None and reasons_against_pages(native, call)
        self._call = None if gathers or why_autograd(call) or choose(call, None) is not native else call


def _alike(call: Call, query: Tensor, key: Tensor, value: Tensor, sink: Tensor | None) -> bool:
    """Whether tensors have the form of those of a call."""
    if not (_same(query, call.query) and _same(key, call.key) and _same(value, call.value)):
        return False
    if sink is None or call.sink is None:
        return sink is call.sink
    return _same(sink, call.sink)


def _same(a: Tensor, b: Tensor) -> bool:
    return type(a) is type(b) and a.dtype is b.dtype and a.shape == b.shape and a.is_cpu and not a.requires_grad
