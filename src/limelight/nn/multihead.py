"""Multi-head attention: projections around the one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import limelight

from .. import fused
from ..backends import native
from ..forms.layouts import Layout
from ..forms.patterns import Pattern
from ..forms.scores import ScoreRule
from ..operator.attention import prepare
from ..tensors.shapes import wrong
from .checks import checked
from .few_tokens import noted
from .places import Places
from .positions import Halves, Rotary
from .projection import Projection, notable, together


@checked
class MultiHead(nn.Module):
    """Attention with several heads (Vaswani et al. 2017, arXiv:1706.03762), of a text to itself or to another.

    ``output(concat_h attention(query_h(x), key_h(y), value_h(y)))``, where ``y`` is ``x`` itself, or in
    cross-attention what `Places.source` holds. Fewer key heads make it grouped- or multi-query. What a token may see,
    how positions enter and what happens to the scores are objects given to the layer; how it is computed is not its
    business.

    Args:
        width: numbers per token of ``x`` and of the result.
        query_heads: ``Hq``.
        key_heads: ``Hkv``, a divisor of ``Hq`` (arXiv:1911.02150, arXiv:2305.13245).
        head_width: ``D``.
        value_width: ``Dv``, the head width of values; ``None`` for ``D``.
        source_width: numbers per token of ``y``; ``None`` for ``width``.
        pattern: which keys a query may see; ``None`` for all.
        rotary: how queries and keys are turned by their positions; ``None`` leaves them.
        head_norm: makes the norms of each query and each key from ``D`` (Qwen 3; Henry et al. 2020,
            arXiv:2010.04245), applied before the rotation; ``None`` for none.
        scores: score rules, in order; a module among them makes its rule when called (`limelight.nn.DistanceBias`).
        scale: factor of the dot product; ``None`` for ``1 / sqrt(D)``.
        sink: whether each head has a learned logit that takes weight and gives no value.
        bias: whether query, key and value projections carry an offset.
        key_bias: the same for keys alone; ``None`` for ``bias`` (a key's offset moves all scores of a query alike, and
            without a position in between it changes no weight: Whisper leaves it out).
        output_bias: whether the output projection carries one.
        dropout: probability with which a weight is dropped in training.
        name: what an observer calls this layer.
    """

    def __init__(
        self,
        width: int,
        query_heads: int,
        key_heads: int,
        head_width: int,
        *,
        value_width: int | None = None,
        source_width: int | None = None,
        pattern: Pattern | None = None,
        rotary: Rotary | None = None,
        head_norm: Callable[[int], nn.Module] | None = None,
        scores: Sequence[ScoreRule | nn.Module] = (),
        scale: float | None = None,
        sink: bool = False,
        bias: bool = True,
        key_bias: bool | None = None,
        output_bias: bool = True,
        dropout: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if query_heads % key_heads:
            raise wrong(
                "query_heads",
                "must be a multiple of `key_heads`",
                f"{query_heads} is not a multiple of {key_heads}",
                "Each key-value head serves the same number of query heads.",
            )
        if rotary is not None and rotary.width > head_width:
            raise wrong(
                "rotary",
                f"must turn at most the {head_width} numbers of a head",
                f"it turns {rotary.width}",
                "Give Rotary the width of a head, or less to turn a part of it.",
            )
        value_width = head_width if value_width is None else value_width
        source_width = width if source_width is None else source_width
        self.head_width, self.value_width = head_width, value_width
        self.pattern, self.rotary, self.scale, self.dropout, self.name = pattern, rotary, scale, dropout, name
        self.scores = tuple(scores)
        self.score_modules = nn.ModuleList(rule for rule in self.scores if isinstance(rule, nn.Module))
        self.query = Projection(width, query_heads * head_width, bias)
        self.key = Projection(source_width, key_heads * head_width, bias if key_bias is None else key_bias)
        self.value = Projection(source_width, key_heads * value_width, bias)
        self.output = Projection(query_heads * value_width, width, output_bias)
        self.query_norm = None if head_norm is None else head_norm(head_width)
        self.key_norm = None if head_norm is None else head_norm(head_width)
        self.sink = nn.Parameter(torch.zeros(query_heads)) if sink else None

    def forward(self, states: Tensor, places: Places | Layout | None = None) -> Tensor:
        """``(B, L, width)`` to the same; keys and values come from `Places.source` where that is given.

        Without ``places``, tokens stand at the positions 0 to L - 1 of texts that are all there (`Places.of`). A layout
        says which of them exist and in which document; positions begin anew in each:

        >>> layer = MultiHead(16, 4, 4, 4)
        >>> layer(torch.randn(1, 30, 16), limelight.Packed((10, 15, 5))).shape
        torch.Size([1, 30, 16])
        """
        places = Places.given(places, states)
        if places.source is None:
            projected, *of_source = together(states, self.query, self.key, self.value)
        else:
            projected, of_source = self.query(states), []
        query = heads_of(projected, self.head_width)
        if self.query_norm is not None:
            query = self.query_norm(query)
        if self.rotary is not None:
            query = places.rotation(self.rotary, query.dtype).turn(query)
        key, value, layout = places.remembered(
            self, self.pattern, states, lambda source: self.keys_and_values(source, places, *of_source)
        )
        mixed = limelight.attention(
            query,
            key,
            value,
            layout=layout,
            pattern=self.pattern,
            scores=self.score_rules(query, places),
            sink=self.sink,
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            name=self.name,
        )  # (B, Hq, L, Dv)
        assert isinstance(mixed, Tensor)  # no observation was asked for; a watcher keeps its own
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def note(self, steps: fused.Capture[Places], states: Tensor) -> Tensor | None:
        """See `limelight.nn.few_tokens`; for tokens that follow others in a cache."""
        if (
            (self.training and self.dropout)
            or not (self.rotary is None or type(self.rotary.pairing) is Halves)
            or native.reasons_against_rules(self.scores)
            or (self.sink is not None and not fused.can_fuse(states, self.sink))
        ):
            return None
        pairs = notable(states, self.query, self.key, self.value, self.output)
        if pairs is None:
            return None
        (B, L, _), heads = states.shape, []
        projected = steps.products(states, pairs[:3])
        for x, norm in zip(projected, (self.query_norm, self.key_norm), strict=False):
            split = x.view(B, L, -1, self.head_width)
            normed = split if norm is None else noted(steps, norm, split)
            if normed is None:
                return None
            heads.append(normed.transpose(1, 2))
        query, key, value = *heads, heads_of(projected[2], self.value_width)
        mixed = states.new_empty(B, L, query.shape[1], self.value_width).transpose(1, 2)

        def look(steps: fused.Capture[Places], places: Places) -> None:
            assert places.cache is not None
            room = places.cache.room(self, self.pattern, key, value)
            turned = None if self.rotary is None else places.rotation(self.rotary, query.dtype)
            if turned is not None:
                steps.rotate_halves(query, turned.own, turned.partners, query)
            for rows, new_key, new_value in room.new:
                if turned is None:
                    steps.copy(key[rows], new_key)
                else:
                    own, partners = (x if len(x) == 1 else x[rows] for x in turned[:2])
                    steps.rotate_halves(key[rows], own, partners, new_key)
                steps.copy(value[rows], new_value)
            call = prepare(
                query, room.key, room.value, room.layout, self.pattern, scores=self.score_rules(query, places),
                sink=self.sink, scale=self.scale,
            )  # fmt: skip
            steps.attention(call, mixed)

        steps.recompute(look)
        return steps.products(mixed.transpose(1, 2).flatten(2), pairs[3:])[0]

    def keys_and_values(self, source: Tensor, places: Places, *projected: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, Lk, source_width)`` to keys ``(B, Hkv, Lk, D)``, turned, and values ``(B, Hkv, Lk, Dv)``.

        ``projected`` are the keys and values before they are heads, where they are known.
        """
        projected = projected or tuple(together(source, self.key, self.value))
        key, value = heads_of(projected[0], self.head_width), heads_of(projected[1], self.value_width)
        if self.key_norm is not None:
            key = self.key_norm(key)
        if self.rotary is not None:
            key = places.key_rotation(self.rotary, key.dtype).turn(key)
        return key, value

    def score_rules(self, query: Tensor, places: Places) -> tuple[ScoreRule, ...]:
        """The rules of this layer, then those that all layers share (`Places.scores`)."""
        return (*(rule(query) if isinstance(rule, nn.Module) else rule for rule in self.scores), *places.scores)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"head_width={self.head_width}, pattern={self.pattern}, rotary={self.rotary}, name={self.name!r}"


def heads_of(projected: Tensor, width: int) -> Tensor:
    """``(B, L, H * D)`` as ``(B, H, L, D)``, without a copy."""
    if projected.dim() != 3:
        got = f"they have {projected.dim()} dimensions"
        raise wrong("states", "must be (B, L, width)", got, "One text is a batch of one: states[None].")
    B, L, all_heads = projected.shape
    return projected.view(B, L, all_heads // width, width).transpose(1, 2)
