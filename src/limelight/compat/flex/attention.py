"""FlexAttention's function, computed by `limelight.attention`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...forms.observations import Observe
from ...forms.patterns import Pattern
from ...tensors.shapes import check_tensor, describe, flag, wrong
from .. import arguments
from ..kernels import attention
from .masks import BlockMask, as_block_mask
from .patterns import EVERYTHING, arranged, both
from .scores import ScoreMod, Scores, scores_of


class AuxRequest(NamedTuple):
    """``torch.nn.attention.flex_attention.AuxRequest``: what is returned beside the output.

    Attributes:
        lse: the logsumexp of the scores.
        max_scores: the largest score.
    """

    lse: bool = False
    max_scores: bool = False


class AuxOutput(NamedTuple):
    """``torch.nn.attention.flex_attention.AuxOutput``: what was asked for by `AuxRequest`, else ``None``.

    Attributes:
        lse: ``(B, Hq, Lq)``, natural logarithm; minus infinity where a query sees nothing.
        max_scores: ``(B, Hq, Lq)``; minus infinity where a query sees nothing.
    """

    lse: Tensor | None = None
    max_scores: Tensor | None = None


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | Any | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: AuxRequest | Any | None = None,
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, AuxOutput]:
    """``torch.nn.attention.flex_attention.flex_attention``, with gradients on every device and without a compiler.

    A ``score_mod`` is recorded in each call. Its steps become score rules: a constant factor the scale, ``limit *
    tanh(score / limit)`` a `limelight.SoftCap`, adding what depends on head and distance a `limelight.RelativeBias` (so
    are ALiBi and T5's bias), adding anything else a `limelight.Bias` of the indices that it depends on,
    ``torch.where(mask, score, -inf)`` a pattern. Derivatives reach the tensors that it captures. Inside of
    ``torch.compile`` the call stays outside of the graph.

    Args:
        query: ``(B, Hq, Lq, D)``.
        key: ``(B, Hkv, Lk, D)``, or of one row that all share.
        value: ``(B, Hkv, Lk, Dv)``.
        score_mod: from ``(score, b, h, q_idx, kv_idx)`` to the score that takes its place.
        block_mask: of `create_block_mask`, here or PyTorch's; ``None`` where every query sees every key.
        scale: factor of the dot product; ``1 / sqrt(D)`` by default.
        enable_gqa: whether there may be fewer key-value heads than query heads.
        return_lse: return ``(output, logsumexp)``.
        kernel_options: ignored: they speak of other kernels.
        return_aux: return ``(output, AuxOutput)``; ours or PyTorch's.

    Returns:
        ``(B, Hq, Lq, Dv)``, zeros where a query sees nothing; and what was asked for.

    Raises:
        ArgumentError: ``score_mod`` or the function of ``block_mask`` is refused, the mask is of other lengths, or what
            `limelight.attention` refuses.

    Example:
        >>> import torch
        >>> from limelight.compat.flex import create_block_mask, flex_attention
        >>> q, k, v = torch.randn(3, 1, 4, 100, 16)
        >>> mask = create_block_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx, None, None, 100, 100)
        >>> flex_attention(q, k, v, lambda s, b, h, q_idx, kv_idx: s + (kv_idx - q_idx), mask).shape
        torch.Size([1, 4, 100, 16])
    """
    return _computed(  # type: ignore[no-any-return]
        query, key, value, score_mod, block_mask, scale, enable_gqa, return_lse, return_aux
    )


@torch.compiler.disable(reason="score_mod and block_mask are read outside of the graph")  # type: ignore[untyped-decorator, no-untyped-call]
def _computed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None,
    block_mask: BlockMask | Any | None,
    scale: float | None,
    enable_gqa: bool,
    return_lse: bool,
    return_aux: AuxRequest | Any | None,
) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, AuxOutput]:
    key, value = _checked(query, key, value, flag("enable_gqa", enable_gqa))
    if flag("return_lse", return_lse) and return_aux is not None:
        raise wrong("return_lse", "cannot be given with return_aux", "both are", "Use return_aux=AuxRequest(lse=True).")
    Lq, Lk = query.shape[2], key.shape[2]
    scores = Scores() if score_mod is None else scores_of(score_mod, query, Lk)
    layout, pattern = _masks(block_mask, scores.pattern, Lq, Lk)
    given = arguments.scale("scale", scale)
    scale = query.shape[-1] ** -0.5 if given is None else given
    settings: dict[str, Any] = {
        "layout": layout, "pattern": pattern, "scores": tuple(scores.rules), "scale": scale * scores.factor,
    }  # fmt: skip
    wanted = AuxRequest(lse=return_lse) if return_aux is None else _wanted(return_aux)
    if not any(wanted):
        output = attention(query, key, value, **settings)
        return output if return_aux is None else (output, AuxOutput())
    observe = Observe(logsumexp=wanted.lse, max_score=wanted.max_scores)
    output, seen = attention(query, key, value, observe=observe, **settings)
    if return_aux is not None:
        return output, AuxOutput(seen.logsumexp, seen.max_score)
    assert seen.logsumexp is not None
    return output, seen.logsumexp


def _wanted(request: Any) -> AuxRequest:
    """Ours of an `AuxRequest`, which may be PyTorch's."""
    if not (hasattr(request, "lse") and hasattr(request, "max_scores")):
        way_out = "Use AuxRequest(lse=True)."
        raise wrong("return_aux", "must be an AuxRequest", f"it is {describe(request)}", way_out)
    return AuxRequest(flag("return_aux.lse", request.lse), flag("return_aux.max_scores", request.max_scores))


def _masks(block_mask: Any, of_scores: Pattern, Lq: int, Lk: int) -> tuple[Any, Pattern | None]:
    """Layout and pattern of a call."""
    if block_mask is None:
        return arranged(of_scores, Lq, Lk)
    mask = as_block_mask(block_mask)
    if mask.seq_lengths != (Lq, Lk):
        got = f"it is made for {mask.seq_lengths[0]} queries and {mask.seq_lengths[1]} keys"
        way_out = "Make it with create_block_mask from the sizes of the call."
        raise wrong("block_mask", f"must be made for {Lq} queries and {Lk} keys", got, way_out)
    if of_scores == EVERYTHING:
        return mask.layout, mask.pattern
    return arranged(both(mask.whole, of_scores), Lq, Lk)


def _checked(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor]:
    """Keys and values for each batch row of the query."""
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        if check_tensor(name, tensor).dim() != 4:
            raise wrong(name, "must be (B, H, L, D)", f"it is {describe(tensor)}", "Use unsqueeze for a single row.")
    if not enable_gqa and query.shape[1] != key.shape[1]:
        got = f"it has {key.shape[1]}, and `query` {query.shape[1]}"
        raise wrong("key", "must have as many heads as `query` without enable_gqa=True", got, "Set enable_gqa=True.")
    if len(key) == len(value) == 1 < len(query):
        key, value = (x.expand(len(query), -1, -1, -1) for x in (key, value))
    return key, value
