"""Multi-head attention: projections around the one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..forms.patterns import Pattern
from ..forms.scores import Comparison, ScoreRule
from ..tensors.distributed import local_part
from ..tensors.shapes import describe, wrong
from .checks import checked
from .context import ForwardContext
from .positions import Rotary, Rotation
from .projection import Projection, together


@checked
class MultiHead(nn.Module):
    """Attention with several heads (Vaswani et al. 2017, arXiv:1706.03762), of a text to itself or to another.

    ``output(concat_h attention(query_h(x), key_h(y), value_h(y)))``, where ``y`` is ``x`` itself, or in
    cross-attention what `ForwardContext.source` holds. Fewer key-value heads make it
    grouped- or multi-query attention. What a token may see, how positions enter and what happens to the scores are
    objects given to the layer.

    Args:
        width: features per token (``d_model``) of ``x`` and of the result.
        query_heads: ``Hq``.
        key_value_heads: ``Hkv``, a divisor of ``Hq`` (arXiv:1911.02150, arXiv:2305.13245).
        head_width: ``D``, features of each query and key.
        value_width: ``Dv``, features of each value; ``None`` for ``D``.
        source_width: features per token (``d_model``) of ``y``; ``None`` for ``width``.
        pattern: which keys a query may see; ``None`` for all.
        rotary: the rotation of queries and keys by their positions; ``None`` for none.
        head_norm: makes the norms of each query and each key from ``D`` (Qwen 3; Henry et al. 2020,
            arXiv:2010.04245), applied before the rotation; ``None`` for none.
        scores: score rules, in order; a module among them makes its rule when called (`limelight.nn.DistanceBias`).
        compare: what a query and a key make a score by; ``None`` for the dot product. A module makes the comparison
            when called, for instance one with a learned temperature.
        scale: factor of the dot product; ``None`` for ``1 / sqrt(D)``. A comparison has none.
        sink: whether each head has a learned logit that takes weight and gives no value.
        bias: whether query, key and value projections have a bias.
        key_bias: whether the key projection has one; ``None`` for ``bias`` (it adds the same to
            all scores of a query and so, without rotation, changes no weight: Whisper leaves it out).
        output_bias: whether the output projection has a bias.
        dropout: probability with which a weight is dropped in training.
        name: of this layer in observations (`limelight.watching`).
    """

    capturable = ("pattern", "rotary", "scores", "compare", "scale", "dropout")

    def __init__(
        self,
        width: int,
        *,
        query_heads: int,
        key_value_heads: int,
        head_width: int,
        value_width: int | None = None,
        source_width: int | None = None,
        pattern: Pattern | None = None,
        rotary: Rotary | None = None,
        head_norm: Callable[[int], nn.Module] | None = None,
        scores: Sequence[ScoreRule | nn.Module] = (),
        compare: Comparison | nn.Module | None = None,
        scale: float | None = None,
        sink: bool = False,
        bias: bool = True,
        key_bias: bool | None = None,
        output_bias: bool = True,
        dropout: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if query_heads % key_value_heads:
            raise wrong(
                "query_heads",
                "must be a multiple of `key_value_heads`",
                f"{query_heads} is not a multiple of {key_value_heads}",
                "Each key-value head serves the same number of query heads.",
            )
        if rotary is not None and rotary.width > head_width:
            raise wrong(
                "rotary",
                f"must rotate at most the {head_width} features of a head",
                f"it rotates {rotary.width}",
                f"Use Rotary({head_width}), or less to rotate a part of them.",
            )
        if compare is not None and not isinstance(compare, (Comparison, nn.Module)):
            rule = "must be a comparison, a module that makes one, or None"
            raise wrong("compare", rule, f"it is {describe(compare)}", "For example CosineSimilarity(0.1).")
        if compare is not None and scale is not None:
            got = f"it is {scale}, beside {compare!r}"
            raise wrong("scale", "must be None where `compare` is given", got, "Give the comparison a temperature.")
        value_width = head_width if value_width is None else value_width
        source_width = width if source_width is None else source_width
        self.head_width, self.value_width = head_width, value_width
        self.pattern, self.rotary, self.scale, self.dropout, self.name = pattern, rotary, scale, dropout, name
        self.scores = tuple(scores)
        self.compare = compare
        self.score_modules = nn.ModuleList(rule for rule in self.scores if isinstance(rule, nn.Module))
        self.query = Projection(width, query_heads * head_width, bias)
        self.key = Projection(source_width, key_value_heads * head_width, bias if key_bias is None else key_bias)
        self.value = Projection(source_width, key_value_heads * value_width, bias)
        self.output = Projection(query_heads * value_width, width, output_bias)
        self.query_norm = None if head_norm is None else head_norm(head_width)
        self.key_norm = None if head_norm is None else head_norm(head_width)
        self.sink = nn.Parameter(torch.zeros(query_heads)) if sink else None

    def forward(self, states: Tensor, context: ForwardContext | Layout | None = None) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``; in cross-attention keys and values come from `ForwardContext.source`.

        Without ``context``, tokens have the positions 0 to L - 1, without padding (`ForwardContext.of`). A layout says
        which of them exist and in which document; positions are counted in each:

        >>> import limelight
        >>> layer = MultiHead(16, query_heads=4, key_value_heads=4, head_width=4)
        >>> layer(torch.randn(1, 30, 16), limelight.Packed((10, 15, 5))).shape
        torch.Size([1, 30, 16])

        Raises:
            ArgumentError: states of another width, dtype or device; a layout of other sizes.
        """
        context = ForwardContext.given(context, states)
        if context.source is None:
            projected, *own = together(states, self.query, self.key, self.value)
        else:
            projected, own = self.query(states), []
        query = self.rotated_heads(projected, self.query_norm, context.rotation)
        key, value = context.cached(self) or self.keys_and_values(states, context, *own)
        mixed = context.attend(
            self,
            query,
            key,
            value,
            pattern=self.pattern,
            scores=self.score_rules(query, context),
            compare=self.comparison(query),
            sink=None if self.sink is None else local_part(self.sink),
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            name=self.name,
        )  # (B, Hq, L, Dv)
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def keys_and_values(self, states: Tensor, context: ForwardContext, *projected: Tensor) -> tuple[Tensor, Tensor]:
        """Keys ``(B, Hkv, Lk, D)``, normalised and rotated, and values ``(B, Hkv, Lk, Dv)``.

        Args:
            states: ``(B, L, width)``; not used in cross-attention.
            context: with the ``source`` of cross-attention, ``(B, Lk, source_width)``.
            projected: keys ``(B, Lk, Hkv * D)`` and values ``(B, Lk, Hkv * Dv)`` where they were projected already.
        """
        source = states if context.source is None else context.source
        projected = projected or tuple(together(source, self.key, self.value))
        key = self.rotated_heads(projected[0], self.key_norm, context.key_rotation)
        return key, heads_of(projected[1], self.value_width)

    def rotated_heads(
        self, projected: Tensor, norm: nn.Module | None, rotation: Callable[[Rotary, torch.dtype], Rotation]
    ) -> Tensor:
        """Queries or keys ``(B, L, H * D)`` as ``(B, H, L, D)``, normalised and rotated by their positions."""
        heads = split_heads(projected, self.head_width)
        heads = (heads if norm is None else norm(heads)).transpose(1, 2)
        return heads if self.rotary is None else rotation(self.rotary, heads.dtype).rotate(heads)

    def score_rules(self, query: Tensor, context: ForwardContext) -> tuple[ScoreRule, ...]:
        """The rules of this layer, then those that all layers share (`ForwardContext.scores`)."""
        return (*(rule(query) if isinstance(rule, nn.Module) else rule for rule in self.scores), *context.scores)

    def comparison(self, query: Tensor) -> Comparison | None:
        """The comparison of this layer, made for ``query`` by its module where it has one."""
        made: Comparison | None = self.compare(query) if isinstance(self.compare, nn.Module) else self.compare
        return made

    def extra_repr(self) -> str:
        return f"head_width={self.head_width}, pattern={self.pattern}, rotary={self.rotary}, name={self.name!r}"


def heads_of(projected: Tensor, width: int) -> Tensor:
    """``(B, L, H * D)`` as ``(B, H, L, D)``, without a copy."""
    return split_heads(projected, width).transpose(1, 2)


def split_heads(projected: Tensor, width: int) -> Tensor:
    """``(B, L, H * D)`` as ``(B, L, H, D)``, without a copy."""
    if projected.dim() != 3:
        got = f"they have {projected.dim()} dimensions"
        raise wrong("states", "must be (B, L, width)", got, "One text is a batch of one: states[None].")
    B, L, all_heads = projected.shape
    return projected.view(B, L, all_heads // width, width)
