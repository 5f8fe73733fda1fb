"""Mixtures of heads: multi-head attention of which a few heads are computed for each token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..forms.layouts import Layout, Subset
from ..forms.quantized import Quantized
from ..forms.scores import ScoreRule
from ..operator.attention import attention
from ..tensors.shapes import whole_number, wrong
from .checks import check_texts, checked, refuse_recorders, refuse_spread
from .context import ForwardContext
from .multihead import MultiHead, split_heads
from .routing import Routing, report, shares


class HeadRouting(NamedTuple):
    """Which heads are computed for which token, and the weights of their results."""

    shared: Tensor  # (B, L, shared heads), the weights of the heads computed for every token
    routed: Routing  # over the other heads


@checked
class TwoStage(nn.Module):
    """The learned router (Jin et al. 2024, arXiv:2410.11842), as its authors publish it.

    With ``[a, b] = 2 softmax(V x)``: a shared head counts ``a * shared * softmax(S x)``, and a chosen one of the others
    ``b * k * softmax(R x)``, renormalised over the ``k`` chosen. The factors make the mean weight of a working head 1,
    so that an untrained router leaves plain attention. (The paper's equations 4 and 5 write the weights
    without them.)

    Args:
        width: features per token (``d_model``).
        shared: heads computed for every token.
        routed: heads to choose from.
        k: how many of them are computed for a token.
    """

    def __init__(self, width: int, *, shared: int, routed: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.routed = nn.Linear(width, routed, bias=False)
        self.shared = nn.Linear(width, shared, bias=False) if shared else None
        self.balance = nn.Linear(width, 2, bias=False) if shared else None

    def forward(self, states: Tensor, query: Tensor) -> HeadRouting:
        """``(B, L, width)`` to its `HeadRouting`; the queries are not used."""
        parts = [part for part in (self.routed, self.shared, self.balance) if part is not None]
        joined = functional.linear(states, torch.cat([part.weight for part in parts]))  # one thin product for three
        logits, *others = torch.split(joined, [part.out_features for part in parts], dim=-1)
        weights, chosen = shares(logits).topk(self.k, dim=-1)
        weights = self.k * weights / weights.sum(-1, keepdim=True)
        if not others:
            return HeadRouting(logits[..., :0], Routing(logits, chosen, weights))
        a, b = (2 * shares(others[1])).chunk(2, dim=-1)
        shared = a * others[0].shape[-1] * shares(others[0])
        return HeadRouting(shared, Routing(logits, chosen, b * weights))


@checked
class QueryNorm(nn.Module):
    """The router without parameters: the ``k`` heads whose query is longest, each counting 1 (arXiv:2410.11842).

    It makes a mixture of a trained model without training: a head whose query is short attends nearly evenly. The
    logits of its balance loss are the lengths over their standard deviation.

    Args:
        width: features per token (``d_model``).
        shared: heads computed for every token, the first ones.
        routed: heads to choose from.
        k: how many of them are computed for a token.
    """

    def __init__(self, width: int, *, shared: int, routed: int, k: int) -> None:
        super().__init__()
        self.k, self.shared = k, shared

    def forward(self, states: Tensor, query: Tensor) -> HeadRouting:
        """Queries ``(B, Hq, L, D)`` as they are projected to their `HeadRouting`."""
        lengths = query[:, self.shared :].norm(dim=-1).mT  # (B, L, routed)
        chosen = lengths.topk(self.k, dim=-1).indices
        spread = lengths.std(dim=-1, keepdim=True) if lengths.shape[-1] > 1 else torch.ones_like(lengths)
        logits = lengths / spread.clamp(min=torch.finfo(lengths.dtype).tiny)
        ones = torch.ones_like(lengths[..., :1])
        shared = ones.expand(*ones.shape[:-1], self.shared)
        return HeadRouting(shared, Routing(logits, chosen, ones.expand(chosen.shape)))


@checked
class MixtureOfHeads(MultiHead):
    """Multi-head attention in which ``shared`` heads and ``k`` of the others are computed for each token.

    ``output(concat_h g_h(x) * head_h(x))``, ``g_h(x) = 0`` for a head that was not chosen (Jin et al. 2024,
    arXiv:2410.11842). The attention that was not chosen is not computed: for each head its own tokens are gathered, and
    only they are compared with the keys (`limelight.Subset` holds their positions). Keys and values are those of every
    token, since any query may attend to them; queries are projected for all heads in one product, which is faster
    than gathering states for several. The routing is reported to `limelight.nn.routings`, for `balance_loss`.

    An observer sees the shared heads as ``name + ".shared"`` and each of the others as ``name + ".head3"``.

    Args:
        width: features per token (``d_model``).
        query_heads: ``Hq``.
        key_value_heads: ``Hkv``, a divisor of ``Hq``.
        head_width: ``D``, features of each query and key.
        shared: heads computed for every token, the first ones; a multiple of ``query_heads / key_value_heads``.
        k: how many of the other heads are computed for a token.
        router: makes the router from ``(width, shared=..., routed=..., k=...)``: `TwoStage` or `QueryNorm`.
        settings: further arguments of `MultiHead`.
    """

    reads_other_tokens = "each of its heads has queries of its own"

    def __init__(
        self,
        width: int,
        *,
        query_heads: int,
        key_value_heads: int,
        head_width: int,
        shared: int,
        k: int,
        router: Callable[..., nn.Module] = TwoStage,
        **settings: Any,
    ) -> None:
        super().__init__(
            width, query_heads=query_heads, key_value_heads=key_value_heads, head_width=head_width, **settings
        )
        self.query_heads, self.group = query_heads, query_heads // key_value_heads
        self.shared, self.k = whole_number("shared", shared, at_least=0), whole_number("k", k, at_least=1)
        if shared % self.group:
            raise wrong(
                "shared",
                f"must be a multiple of {self.group}, the query heads that share each key-value head",
                f"it is {shared}",
                f"Use {shared // self.group * self.group} or {-(-shared // self.group) * self.group}.",
            )
        if k > query_heads - shared:
            raise wrong(
                "k",
                f"must be at most the {query_heads - shared} heads that are not shared",
                f"it is {k}",
                f"Use k <= {query_heads - shared}.",
            )
        if isinstance(self.compare, nn.Module) or (self.compare is not None and self.compare.tensors()):
            rule, got = "must be the same for every head of a MixtureOfHeads", f"it is {self.compare!r}"
            raise wrong("compare", rule, got, "Use a comparison without tensors, such as CosineSimilarity(0.1).")
        self.router = router(width, shared=shared, routed=query_heads - shared, k=k)

    def forward(self, states: Tensor, context: ForwardContext | Layout | None = None) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``.

        Raises:
            ArgumentError: a layout over several processes.
            BackendError: PyTorch records the operations for other states, as ``torch.jit.trace`` does.
        """
        check_texts(states, self.query.in_features, self.query.weight)
        refuse_recorders(self, states, "which head works for which token")
        context = ForwardContext.given(context, states)
        refuse_spread(self, context.layout)
        B, L, _ = states.shape
        projected = self.query(states)
        decided: HeadRouting = self.router(states, split_heads(projected, self.head_width).transpose(1, 2))
        report(self.name, decided.routed)
        query = self.rotated_heads(projected, self.query_norm, context.rotation)
        key, value = context.cached(self) or self.keys_and_values(states, context)
        cached_key, cached_value, layout = context.extend(self, self.pattern, key, value)
        key, value = (  # contiguous for each head, since heads are computed separately
            x.dense(query.dtype) if isinstance(x, Quantized) else x.contiguous() for x in (cached_key, cached_value)
        )
        rules = self.score_rules(query, context)

        together = value.new_zeros(B, L + 1, self.query_heads, self.value_width)  # one more, for what does not exist
        if self.shared:
            mixed = self._attend(slice(0, self.shared), query[:, : self.shared], key, value, layout, rules, "shared")
            together[:, :L, : self.shared] = mixed.transpose(1, 2)
        works = torch.zeros(B, L, self.query_heads - self.shared, dtype=torch.bool, device=states.device)
        works.scatter_(-1, decided.routed.chosen, True)
        row = torch.arange(B, device=states.device)[:, None]
        for head, index in enumerate(_tokens_of(works), start=self.shared):
            if index.shape[1]:
                few = query[row, head, index.clamp(min=0)][:, None]
                chosen = Subset(index, L, layout)
                mixed = self._attend(slice(head, head + 1), few, key, value, chosen, rules, f"head{head}")
                together[row, index.where(index >= 0, L), head] = mixed[:, 0]
        gates = torch.zeros_like(works, dtype=decided.routed.weights.dtype)
        gates = gates.scatter(-1, decided.routed.chosen, decided.routed.weights)
        gates = torch.cat((decided.shared, gates), dim=-1)[..., None].to(together.dtype)
        return self.output((together[:, :L] * gates).flatten(2))  # type: ignore[no-any-return]

    def _attend(
        self,
        heads: slice,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: Layout | None,
        rules: tuple[ScoreRule, ...],
        name: str,
    ) -> Tensor:
        """Some heads for some tokens: queries ``(B, heads, n, D)`` to ``(B, heads, n, Dv)``."""
        theirs = slice(heads.start // self.group, -(-heads.stop // self.group))
        mixed = attention(
            query,
            key[:, theirs],
            value[:, theirs],
            layout=layout,
            pattern=self.pattern,
            scores=tuple(_of_heads(rule, heads) for rule in rules),
            compare=self.comparison(query),
            sink=None if self.sink is None else self.sink[heads],
            scale=self.scale,
            dropout=self.dropout if self.training else 0.0,
            name=None if self.name is None else f"{self.name}.{name}",
        )
        assert isinstance(mixed, Tensor)  # no observation was requested; a watcher keeps its own
        return mixed


def _tokens_of(works: Tensor) -> list[Tensor]:
    """For each head of ``works`` ``(B, L, H)`` its tokens in their order, ``(B, n)``, -1 where a row has fewer."""
    order = works.byte().argsort(dim=1, descending=True, stable=True)
    counts = works.sum(1)  # (B, H)
    most = counts.amax(0).tolist() if len(counts) else [0] * works.shape[2]
    return [
        order[:, :n, head].masked_fill(torch.arange(n, device=order.device) >= counts[:, head, None], -1)
        for head, n in enumerate(most)
    ]


def _of_heads(rule: ScoreRule, heads: slice) -> ScoreRule:
    """A rule as some of the heads have it."""
    if "q" in rule.letters:
        raise wrong(
            "scores",
            "of a MixtureOfHeads must be rules of positions alone (SoftCap, ALiBi, RelativeBias)",
            f"there is {rule!r}, which goes by the index of the query",
            "Use MultiHead.",
        )
    return rule.for_heads(heads)
