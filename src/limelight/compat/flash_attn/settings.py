"""What flash-attention's arguments mean, as settings of `limelight.attention`."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...forms.observations import Observe
from ...forms.patterns import Causal, Pattern, Window
from ...forms.scores import ALiBi, ScoreRule, SoftCap
from ...tensors.shapes import check_tensor, describe, wrong
from ..kernels import attention

#: The output; with ``return_attn_probs=True`` also the logsumexp, and ``None`` for the weights of their tests.
Result = Tensor | tuple[Tensor, Tensor, None]


def meaning(
    causal: bool, window_size: tuple[int, int], softcap: float, alibi_slopes: Tensor | None
) -> tuple[Pattern | None, tuple[ScoreRule, ...]]:
    """Pattern and score rules in flash-attention's words; it caps scores before it adds the ALiBi slopes."""
    left, right = (None if side < 0 else int(side) for side in window_size)
    pattern: Pattern | None = None
    if left is not None or right is not None:
        pattern = Window(left, right)
    if causal:
        pattern = Causal() if pattern is None else Causal() & pattern
    scores: list[ScoreRule] = []
    if softcap > 0:
        scores.append(SoftCap(softcap))
    if alibi_slopes is not None:
        scores.append(ALiBi(alibi_slopes))
    return pattern, tuple(scores)


def attend(
    query: Tensor, key: Tensor, value: Tensor, *, observed: bool, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """The output, and the logsumexp when it is asked for, of ``(B, H, L, D)`` tensors."""
    if not observed:
        return attention(query, key, value, **settings), None
    output, seen = attention(query, key, value, observe=Observe(logsumexp=True), **settings)
    assert seen.logsumexp is not None
    return output, seen.logsumexp


def result(output: Tensor, logsumexp: Tensor | None) -> Result:
    """What flash-attention returns: with a logsumexp, the three of ``return_attn_probs=True``."""
    return output if logsumexp is None else (output, logsumexp, None)


def unpacked(name: str, tensor: Tensor, parts: int, dims: int) -> tuple[Tensor, ...]:
    """Queries, keys and values, or keys and values, that lie in one tensor ``(..., parts, H, D)``; views of it.

    Raises:
        ArgumentError: the tensor has not ``dims`` dimensions, of which the third last is ``parts``.
    """
    if check_tensor(name, tensor).dim() != dims or tensor.shape[-3] != parts:
        shape = "(B, L, " if dims == 5 else "(total, "
        way_out = f"Use torch.stack along the dimension before the heads, of {parts} tensors."
        raise wrong(name, f"must be {shape}{parts}, H, D)", f"it is {describe(tensor)}", way_out)
    return tensor.unbind(-3)


def lengths(name: str, ends: Tensor) -> Tensor:
    """The lengths of documents, ``(N,)``, of the ``(N + 1,)`` places where they begin and end."""
    if ends.dim() != 1 or len(ends) < 1 or ends.dtype.is_floating_point:
        raise wrong(name, "must be (N + 1,) whole numbers", f"its shape is {tuple(ends.shape)}", "Begin with 0.")
    return ends.diff()
