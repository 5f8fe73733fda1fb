"""Operations over few tokens, captured once and replayed in one call, as a CUDA graph is.

Calling hundreds of operations from Python for every generated token takes longer than many of them. A capture holds the
bytes of each native call; what changes from token to token (where keys go, what a query sees) is recomputed in every
replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ..backends.contract import Call
from ..backends.native import captured, library
from ..backends.native.library import ELEMENTS
from ..backends.native.structures import STEP, SUM
from ..forms.quantized import Quantized
from .dispatch import different_shapes
from .gate import pack_gate
from .matrices import PRODUCT_SHAPES, pack_products
from .norm import pack_norm
from .quantisation import pack_quantisation
from .rotation import pack_rotation

Now = TypeVar("Now")  # what a replay gives to the functions of `recompute`

_PRODUCT, _NORM, _GATE, _ROTATION, _SUM, _FORWARD, _QUANTISATION = range(7)  # ll_step_kind
_pack_step = STEP.packer("kind", "bytes")


class CapturedCalls(Generic[Now]):
    """Captured operations over few tokens; each `replay` computes them in order in one call of the library.

    The methods are the functions of `limelight.fused`, and give the same bits; what they return is filled by `replay`.
    They are for tensors of which `can_fuse` is true, contiguous but for heads, whose last stride is 1.
    """

    def __init__(self) -> None:
        self._captured: list[bytes | Callable[[CapturedCalls[Now], Now], None]] = []
        self._kept: list[Any] = []  # what the addresses point to

    def norm(self, states: Tensor, weight: Tensor, epsilon: float, offset: float) -> Tensor:
        """`rms_norm`: ``(offset + weight) * x / sqrt(mean(x ** 2) + epsilon)`` over the last dimension."""
        result = torch.empty_like(states)
        self._add(_NORM, pack_norm(states, weight, epsilon, offset, result, None))
        self._kept.append(result)
        return result

    def products(self, states: Tensor, matrices: Sequence[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """`products`: ``states @ weight.T + bias`` of up to `MAX_ROWS` vectors with up to four matrices."""
        for weight, bias in matrices:
            PRODUCT_SHAPES.check(states, weight, bias)
        found, packed = pack_products(states, matrices, self._kept)
        self._add(_PRODUCT, packed)
        self._kept += found
        return found

    def gated(self, activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
        """`gated`: ``activation(gate) * up``, of an activation of `SIGMOID_FORMS`."""
        if gate.shape != up.shape:
            raise different_shapes("up", "gate", up, gate)
        result = torch.empty_like(gate)
        self._add(_GATE, pack_gate(gate, up, activation, result))
        self._kept.append(result)
        return result

    def rotate_halves(self, heads: Tensor, own: Tensor, partners: Tensor, result: Tensor) -> Tensor:
        """`rotate_halves` into ``result`` ``(B, H, L, D)``, which may be ``heads`` itself."""
        if result.shape != heads.shape:
            raise different_shapes("result", "heads", result, heads)
        own, partners = own.contiguous(), partners.contiguous()
        self._add(_ROTATION, pack_rotation(heads, own, partners, 1.0, result))
        self._kept += (own, partners, result)
        return result

    def copy(self, heads: Tensor, result: Tensor) -> None:
        """``heads`` ``(B, H, L, D)`` into ``result``: a rotation of no features."""
        if result.shape != heads.shape:
            raise different_shapes("result", "heads", result, heads)
        nothing = heads.new_empty(1, 1, heads.shape[2], 0)
        self._add(_ROTATION, pack_rotation(heads, nothing, nothing, 1.0, result))
        self._kept.append(result)

    def quantise(self, heads: Tensor, result: Quantized) -> None:
        """`quantise` ``heads`` ``(B, H, L, D)`` into ``result``."""
        self._add(_QUANTISATION, pack_quantisation(heads, result))
        self._kept.append(result)

    def attention(self, call: Call, output: Tensor) -> None:
        """`limelight.attention` of a checked call without observations and derivatives, into ``output``."""
        self._add(_FORWARD, captured(call, output, self._kept))
        self._kept += (call, output)

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        """``left + right``, of one shape."""
        if left.shape != right.shape:
            raise different_shapes("right", "left", right, left)
        result = torch.empty_like(left)
        packed = SUM.pack(
            element=ELEMENTS[left.dtype], threads=torch.get_num_threads(), count=left.numel(),
            left=left.data_ptr(), right=right.data_ptr(), result=result.data_ptr(),
        )  # fmt: skip
        self._add(_SUM, packed)
        self._kept.append(result)
        return result

    def recompute(self, capture: Callable[[CapturedCalls[Now], Now], None]) -> None:
        """Add operations that differ between replays: each replay captures them by ``capture(part, now)``."""
        self._captured.append(capture)

    def replay(self, now: Now) -> None:
        """Compute all operations in order; ``now`` is given to the functions of `recompute`.

        Raises:
            BackendError: the library refuses an operation; those before it have been computed.
        """
        whole: CapturedCalls[Now] = CapturedCalls()
        for part in self._captured:
            if isinstance(part, bytes):
                whole._captured.append(part)
            else:
                part(whole, now)
        library.replay(b"".join(whole._captured))  # type: ignore[arg-type]

    def keep(self, *tensors: Tensor) -> None:
        """Keep tensors alive whose addresses are among the captured bytes."""
        self._kept += tensors

    def _add(self, kind: int, packed: bytes) -> None:
        self._captured += (_pack_step(kind, len(packed)), packed)
