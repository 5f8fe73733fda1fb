"""What flash-attention's arguments mean, as settings of `limelight.attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...forms.observations import Observe
from ...forms.patterns import Causal, Pattern, Window
from ...forms.scores import ALiBi, ScoreRule, SoftCap
from ...forms.scores.rules import check_float
from ...tensors.shapes import check_dropout, check_tensor, describe, flag, number, wrong
from ...tensors.tracing import readable
from .. import arguments
from ..kernels import attention

#: The output; with ``return_attn_probs=True`` also the logsumexp, and ``None`` for the weights of their tests.
Result = Tensor | tuple[Tensor, Tensor, None]


def meaning(
    causal: bool, window_size: tuple[int, int], softcap: float, alibi_slopes: Tensor | None
) -> tuple[Pattern | None, tuple[ScoreRule, ...]]:
    """Pattern and score rules in flash-attention's words; it caps scores before it adds the ALiBi slopes."""
    left, right = _window(window_size)
    pattern: Pattern | None = None
    if left is not None or right is not None:
        pattern = Window(left, right)
    if flag("causal", causal):
        pattern = Causal() if pattern is None else Causal() & pattern
    scores: list[ScoreRule] = []
    if number("softcap", softcap, "must be a finite number", "0 is off.") > 0:
        scores.append(SoftCap(softcap))
    if alibi_slopes is not None:
        check_float("alibi_slopes", alibi_slopes, (1, 2))
        scores.append(ALiBi(alibi_slopes))
    return pattern, tuple(scores)


def _window(sizes: Any) -> tuple[int | None, int | None]:
    """Keys before and after the query's own, ``None`` for no limit.

    Raises:
        ArgumentError: they are not two whole numbers.
    """
    found = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    if (
        not isinstance(found, (tuple, list))
        or len(found) != 2
        or not all(n is None or hasattr(n, "__index__") for n in found)
    ):
        way_out = "For example (255, 0); -1 is no limit."
        raise wrong("window_size", "must be two whole numbers (left, right)", f"it is {sizes!r}", way_out)
    left, right = (None if n is None or n < 0 else int(n) for n in found)
    return left, right


def check_dims(shape: str, **tensors: Any) -> None:
    """Raise where one of the ``tensors`` has not the dimensions of ``shape``, such as ``(B, L, H, D)``."""
    for name, tensor in tensors.items():
        if check_tensor(name, tensor).dim() != shape.count(",") + 1:
            raise wrong(name, f"must be {shape}", f"it is {describe(tensor)}", "Use unsqueeze for a single row.")


def chance_and_scale(dropout_p: float, softmax_scale: float | None, return_attn_probs: bool) -> dict[str, Any]:
    """Keyword arguments of `attend`: the probability of dropout, the scale, and whether the logsumexp is returned."""
    return {
        "dropout": check_dropout(dropout_p, "dropout_p"),
        "scale": arguments.scale("softmax_scale", softmax_scale),
        "observed": flag("return_attn_probs", return_attn_probs),
    }


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
    if check_tensor(name, ends).dim() != 1 or len(ends) < 1 or ends.is_floating_point() or ends.dtype == torch.bool:
        raise wrong(name, "must be (N + 1,) whole numbers", f"it is {describe(ends)}", "Begin with 0.")
    if readable(ends) and not ends.is_meta and int(ends[0]) != 0:
        raise wrong(name, "must begin with 0", f"it begins with {int(ends[0])}", "Subtract its first number.")
    return ends.diff()
