"""Multi-head attention: projections around the one operator."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

import limelight

from ..patterns import Pattern
from ..scores import ScoreRule
from .places import Places
from .positions import Rotary


class MultiHead(nn.Module):
    """Self-attention with several heads (Vaswani et al. 2017); fewer key heads make it grouped- or multi-query.

    ``output(concat_h attention(query_h(x), key_h(x), value_h(x)))``. What a token may see, how positions enter and what
    happens to the scores are objects given to the layer; how it is computed is not its business.

    Args:
        width: numbers per token.
        query_heads: ``Hq``.
        key_heads: ``Hkv``, a divisor of ``Hq`` (arXiv:1911.02150, arXiv:2305.13245).
        head_width: ``D``.
        pattern: which keys a query may see; ``None`` for all.
        rotary: how queries and keys are turned by their positions; ``None`` leaves them.
        scores: score rules, in order.
        bias: whether query, key and value projections carry an offset.
        output_bias: whether the output projection carries one.
        name: what an observer calls this layer.
    """

    def __init__(
        self,
        width: int,
        query_heads: int,
        key_heads: int,
        head_width: int,
        *,
        pattern: Pattern | None = None,
        rotary: Rotary | None = None,
        scores: Sequence[ScoreRule] = (),
        bias: bool = True,
        output_bias: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.head_width, self.pattern, self.rotary, self.scores, self.name = (
            head_width,
            pattern,
            rotary,
            tuple(scores),
            name,
        )
        self.query = nn.Linear(width, query_heads * head_width, bias)
        self.key = nn.Linear(width, key_heads * head_width, bias)
        self.value = nn.Linear(width, key_heads * head_width, bias)
        self.output = nn.Linear(query_heads * head_width, width, output_bias)

    def forward(self, states: Tensor, places: Places) -> Tensor:
        """``(B, L, width)`` to the same."""
        query, key, value = (self._heads(project(states)) for project in (self.query, self.key, self.value))
        if self.rotary is not None:
            rotation = places.rotation(self.rotary, query.dtype)
            query, key = rotation.turn(query), rotation.turn(key)
        mixed = limelight.attention(
            query, key, value, layout=places.layout, pattern=self.pattern, scores=self.scores, name=self.name
        )  # (B, Hq, L, D)
        assert isinstance(mixed, Tensor)  # no observation was asked for; a watcher keeps its own
        return self.output(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _heads(self, projected: Tensor) -> Tensor:
        """``(B, L, H * D)`` as ``(B, H, L, D)``, without a copy."""
        B, L, width = projected.shape
        return projected.view(B, L, width // self.head_width, self.head_width).transpose(1, 2)

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        return f"head_width={self.head_width}, pattern={self.pattern}, rotary={self.rotary}, name={self.name!r}"
