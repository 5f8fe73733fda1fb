"""Attention before the Transformer: states are compared with a source, and the source itself is averaged.

=============================  ==========================================  ======================================
`AdditiveAttention`            ``v . tanh(W_q q + W_k k)``                 Bahdanau et al. 2014, arXiv:1409.0473
`MultiplicativeAttention`      ``q . W k``                                 Luong et al. 2015, arXiv:1508.04025
`dot_attention`                ``q . k``                                   Luong et al. 2015; without parameters
=============================  ==========================================  ======================================
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..forms.patterns import Pattern
from ..forms.scores import Additive
from ..operator.attention import attention
from ..tensors.shapes import whole_number
from .checks import check_texts, checked
from .context import ForwardContext
from .multihead import heads_of


@checked
class Alignment(nn.Module):
    """Base of `AdditiveAttention` and `MultiplicativeAttention`: heads, values, pattern, dropout.

    A subclass says what queries and keys are, and how they are compared.

    Args:
        width: features per token (``d_model``) of the queries.
        source_width: features per token (``d_model``) of the source; ``None`` for ``width``.
        heads: comparisons made side by side, each with its own weights.
        value_width: ``Dv``, features of the values of each head, projected from the source; ``None`` mixes the source
            itself.
        pattern: which keys a query may see; ``None`` for all.
        dropout: probability with which a weight is dropped in training.
        name: of this layer in observations (`limelight.watching`).
    """

    key: nn.Linear

    def __init__(
        self,
        width: int,
        *,
        source_width: int | None = None,
        heads: int = 1,
        value_width: int | None = None,
        pattern: Pattern | None = None,
        dropout: float = 0.0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.width, self.source_width = width, width if source_width is None else source_width
        self.heads = whole_number("heads", heads, at_least=1)
        self.value_width, self.pattern, self.dropout, self.name = value_width, pattern, dropout, name
        self.value = None if value_width is None else nn.Linear(self.source_width, heads * value_width, bias=False)

    def forward(self, states: Tensor, context: ForwardContext | None = None) -> Tensor:
        """``(B, L, width)`` to ``(B, L, heads * Dv)``; ``Dv`` is ``value_width``, or ``source_width`` without one.

        Keys and values are computed from `ForwardContext.source` where that is given, else from the states.

        Raises:
            ArgumentError: states or a source of another width, dtype or device.
        """
        check_texts(states, self.width, self.key.weight)
        context = ForwardContext.given(context, states)
        if context.source is not None:
            check_texts(context.source, self.source_width, self.key.weight, "source")
        source = states if context.source is None else context.source
        key, value = context.cached(self) or self._keys_and_values(source)
        mixed = context.attend(
            self,
            self.queries(states),
            key,
            value,
            pattern=self.pattern,
            scores=tuple(context.scores),
            dropout=self.dropout if self.training else 0.0,
            name=self.name,
            **self.comparison(),
        )  # (B, heads, L, Dv)
        return mixed.transpose(1, 2).flatten(2)

    def _keys_and_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        key = self.keys(source)
        if self.value is None or self.value_width is None:
            return key, source[:, None].expand(-1, self.heads, -1, -1)
        return key, heads_of(self.value(source), self.value_width)

    def queries(self, states: Tensor) -> Tensor:
        """``(B, L, width)`` to ``(B, heads, L, D)``."""
        raise NotImplementedError

    def keys(self, source: Tensor) -> Tensor:
        """``(B, Lk, source_width)`` to ``(B, heads, Lk, D)``."""
        raise NotImplementedError

    def comparison(self) -> dict[str, Any]:
        """The arguments of `limelight.attention` that describe the comparison of queries and keys."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.width} to {self.source_width}, heads={self.heads}, pattern={self.pattern}, name={self.name!r}"


@checked
class AdditiveAttention(Alignment):
    """``sum_j softmax_j(v . tanh(W_q q_i + W_k k_j + b)) value_j`` (Bahdanau et al. 2014, arXiv:1409.0473).

    A small network compares, so queries and keys may have different widths. With several heads each has its own
    ``W_q``, ``W_k``, ``b`` and ``v``, and their results are laid side by side.

    Args:
        width: features per token (``d_model``) of the queries.
        source_width: features per token (``d_model``) of the source; ``None`` for ``width``.
        inner: features inside the network of each head.
        settings: ``heads``, ``value_width``, ``pattern``, ``dropout`` and ``name``, as in `Alignment`.
    """

    def __init__(self, width: int, *, source_width: int | None = None, inner: int, **settings: Any) -> None:
        super().__init__(width, source_width=source_width, **settings)
        self.inner = whole_number("inner", inner, at_least=1)
        self.query = nn.Linear(self.width, self.heads * inner, bias=False)
        self.key = nn.Linear(self.source_width, self.heads * inner)
        self.vector = nn.Parameter(torch.empty(self.heads, inner))
        nn.init.uniform_(self.vector, -(inner**-0.5), inner**-0.5)  # as a linear layer to one number

    def queries(self, states: Tensor) -> Tensor:
        return heads_of(self.query(states), self.inner)

    def keys(self, source: Tensor) -> Tensor:
        return heads_of(self.key(source), self.inner)

    def comparison(self) -> dict[str, Any]:
        return {"compare": Additive(self.vector)}


@checked
class MultiplicativeAttention(Alignment):
    """``sum_j softmax_j(q_i . W k_j) value_j``, Luong's general form (Luong et al. 2015, arXiv:1508.04025).

    Queries stay as they are, and there is no scale. With several heads each has its own ``W``.

    Args:
        width: features per token (``d_model``) of the queries.
        source_width: features per token (``d_model``) of the source; ``None`` for ``width``.
        settings: ``heads``, ``value_width``, ``pattern``, ``dropout`` and ``name``, as in `Alignment`.
    """

    def __init__(self, width: int, *, source_width: int | None = None, **settings: Any) -> None:
        super().__init__(width, source_width=source_width, **settings)
        self.key = nn.Linear(self.source_width, self.heads * self.width, bias=False)

    def queries(self, states: Tensor) -> Tensor:
        return states[:, None].expand(-1, self.heads, -1, -1)

    def keys(self, source: Tensor) -> Tensor:
        return heads_of(self.key(source), self.width)

    def comparison(self) -> dict[str, Any]:
        return {"scale": 1.0}


def dot_attention(
    states: Tensor, source: Tensor | None = None, *, layout: Layout | None = None, pattern: Pattern | None = None
) -> Tensor:
    """``sum_j softmax_j(x_i . y_j) y_j``: attention with nothing learned, the simplest there is.

    >>> import torch
    >>> words = torch.randn(1, 7, 16)
    >>> dot_attention(words).shape
    torch.Size([1, 7, 16])

    Args:
        states: ``(B, L, width)``, the ``x``.
        source: ``(B, Lk, width)``, the ``y``; ``None`` for the states themselves.
        layout: which tokens exist, and their positions (`limelight.forms.layouts`).
        pattern: which keys a query may see (`limelight.forms.patterns`).

    Returns:
        ``(B, L, width)``.
    """
    other = (states if source is None else source)[:, None]
    mixed = attention(states[:, None], other, other, layout=layout, pattern=pattern, scale=1.0)
    assert isinstance(mixed, Tensor)  # no observation was requested
    return mixed[:, 0]
