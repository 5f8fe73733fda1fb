"""The cost of a model, step by step, from its configuration alone: operations, bytes, and memory.

With ``N`` tokens, width ``d``, ``H`` query heads of width ``D`` and ``P`` visible pairs of a query and a key
(``N (N + 1) / 2`` with a causal pattern)::

    projections    2 N * (weights of query, key, value and output)     O(N d^2)
    scores         2 P H D                                             O(N^2 d)
    softmax        5 P H: maximum, difference, exponential, sum, quotient    O(N^2)
    values         2 P H Dv                                            O(N^2 d)
    feed-forward   2 N * (weights that a token uses)                   O(N d^2)
    head           2 N d V                                             O(N d V)

A multiply-add counts as two operations, as in a machine's peak. Bytes are the minimum: parameters, inputs and outputs
of a step, once each; scores and weights of attention are never stored. Norms, activations and additions are not
counted: they are ``O(N d)``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..forms.layouts import Aligned
from ..forms.patterns import Full, Pattern
from ..forms.spans import UNBOUNDED
from ..nn import SSRU, FeedForward, FrontEnd, GatedFeedForward, MixtureOfExperts, MultiHead, Switch, TopK
from ..nn.heads import TokenHead
from ..tensors.shapes import whole_number, wrong
from . import EncoderDecoder, Stack

GROWTH = {
    "embedding": "N d",
    "projections": "N d²",
    "scores": "N² d",
    "softmax": "N²",
    "values": "N² d",
    "feed-forward": "N d²",
    "recurrence": "N d²",
    "head": "N d V",
}
SOFTMAX = 5  # operations for each pair


@dataclass
class StepCost:
    """One kind of step, summed over all layers.

    Args:
        name: a key of `GROWTH`.
        flop: operations.
        bytes: bytes that are read and written.
    """

    name: str
    flop: int = 0
    bytes: int = 0

    @property
    def growth(self) -> str:
        """How its operations grow with the length ``N`` and the width ``d``."""
        return GROWTH[self.name]

    def seconds(self, peak: float, bandwidth: float) -> float:
        """The minimum time on a machine of ``peak`` operations and ``bandwidth`` bytes per second."""
        return max(self.flop / peak, self.bytes / bandwidth)


@dataclass
class Cost:
    """The cost of one forward pass.

    Args:
        length, batch, itemsize: tokens of each text (and of each source), number of texts, bytes of an element.
        parts: the kinds of steps, in execution order.
        parameter_count: number of parameters; shared ones are counted once.
        pairs: visible (query, key) pairs of all layers and query heads.
        score_elements: elements of the largest layer's score matrix.
        total_score_elements: elements of all layers' score matrices.
        cache_elements: elements of the key and value cache, by the kind of heads: ``"MHA"`` (every query
            head has its own), ``"GQA"`` (four share one; three or two where four do not divide the heads), ``"MQA"``
            (all share one), and ``"here"`` (as in this model).
    """

    length: int
    batch: int
    itemsize: int
    parts: list[StepCost] = field(default_factory=list)
    parameter_count: int = 0
    pairs: int = 0
    score_elements: int = 0
    total_score_elements: int = 0
    cache_elements: dict[str, int] = field(default_factory=dict)

    def part(self, name: str) -> StepCost:
        """The step of this name; one that does not exist yet is added with zero cost."""
        found = next((part for part in self.parts if part.name == name), None)
        if found is None:
            found = StepCost(name)
            self.parts.append(found)
        return found

    @property
    def flop(self) -> int:
        """The operations of all parts together."""
        return sum(part.flop for part in self.parts)

    @property
    def bytes(self) -> int:
        """The bytes that all parts read and write."""
        return sum(part.bytes for part in self.parts)

    def memory(self) -> dict[str, int]:
        """Bytes of the parameters, of the scores if they were stored, and of the cache."""
        scores = {"scores of one layer": self.score_elements, "scores of all layers": self.total_score_elements}
        cache = {f"cache, {kind}": count for kind, count in self.cache_elements.items()}
        elements = {"weights": self.parameter_count, **scores, **cache}
        return {name: self.itemsize * count for name, count in elements.items()}

    def as_json(self) -> dict[str, Any]:
        """All counts, their sums and the memory, as values for JSON."""
        return {**dataclasses.asdict(self), "flop": self.flop, "bytes": self.bytes, "memory": self.memory()}


def cost(network: Stack, length: int, *, batch: int = 1, itemsize: int = 4) -> Cost:
    """The cost of a forward pass of a network over ``batch`` texts of ``length`` tokens; its parameters are not read.

    >>> from limelight.checkpoints.load import outline
    >>> cost(outline("smollm2"), 2048).part("scores").flop  # doctest: +SKIP

    Args:
        network: a model of Limelight that reads tokens; on the meta device it takes no memory.
        length: tokens of each text; in an encoder-decoder, of the source and of the target.
        batch: number of texts.
        itemsize: bytes of an element.

    Raises:
        ArgumentError: the length exceeds the positions of the model, or the model does not read tokens.
    """
    whole_number("length", length, at_least=1)
    whole_number("batch", batch, at_least=1)
    limit = network.config.limit
    if limit is not None and length > limit:
        raise wrong("length", f"must be at most the {limit} positions of the model", f"it is {length}", "Shorten it.")
    count = sum(parameter.numel() for parameter in network.parameters())
    found = Cost(length, batch, itemsize, parameter_count=count)
    if isinstance(network, EncoderDecoder):
        _stack(found, network.encoder)
    _stack(found, network)
    return found


def _stack(found: Cost, stack: Stack) -> None:
    """Add an embedding, layers and a head."""
    if isinstance(stack.embedding, FrontEnd):
        got = f"{stack.config.family} reads a sound or a picture"
        raise wrong("network", "must read tokens, so that a length determines its cost", got, "Take another model.")
    tokens = found.batch * found.length
    embedding = found.part("embedding")
    _matrices(found, "embedding", stack.embedding, tokens)
    embedding.bytes += 2 * tokens * stack.config.width * found.itemsize
    for layer in stack.layers:
        for step in layer.children():
            inner = step.inner
            if isinstance(inner, MultiHead):
                _attention(found, inner)
            elif isinstance(inner, SSRU):
                _matrices(found, "recurrence", inner, tokens)
            elif isinstance(inner, (FeedForward, GatedFeedForward, MixtureOfExperts)):
                _feed_forward(found, inner, tokens)
            else:
                got = f"{type(inner).__name__} is none of them"
                raise wrong("network", "must be made of attention and feed-forward", got, "Take another model.")
    head = stack.head
    if head is not None:
        rows = tokens if isinstance(head, TokenHead) else found.batch  # a class belongs to a text, not to a token
        _matrices(found, "head", head, rows)
        if isinstance(head, TokenHead) and head.tied:
            table = stack.embedding.tokens
            assert isinstance(table, nn.Embedding)
            _product(found, "head", rows, table.num_embeddings, table.embedding_dim)


def _attention(found: Cost, layer: MultiHead) -> None:
    """Add projections, scores, softmax and values of one layer; a source has the length of the text."""
    B, N = found.batch, found.length
    _matrices(found, "projections", layer, B * N)
    D, Dv = layer.head_width, layer.value_width
    Hq, Hkv = layer.query.out_features // D, layer.key.out_features // D
    pattern = Full() if layer.pattern is None else layer.pattern
    pairs = B * Hq * pattern.pairs(N, N, layout=Aligned())
    found.pairs += pairs
    for name, operations, elements in (
        ("scores", 2 * D, B * N * D * (Hq + Hkv)),
        ("softmax", SOFTMAX, 0),
        ("values", 2 * Dv, B * N * Dv * (Hq + Hkv)),
    ):
        part = found.part(name)
        part.flop += operations * pairs
        part.bytes += elements * found.itemsize
    scores = B * Hq * N * N
    found.score_elements = max(found.score_elements, scores)
    found.total_score_elements += scores
    kept = _kept(layer.pattern, N)
    share = next(heads for heads in (4, 3, 2, 1) if Hq % heads == 0)
    for kind, heads in {"MHA": Hq, "GQA": Hq // share, "MQA": 1, "here": Hkv}.items():
        found.cache_elements[kind] = found.cache_elements.get(kind, 0) + B * kept * heads * (D + Dv)


def _kept(pattern: Pattern | None, length: int) -> int:
    """How many tokens the next query sees at most, itself included."""
    back, ahead = UNBOUNDED if pattern is None else pattern.reach()
    return min(length, back + 1) if back is not None and ahead == 0 else length


def _feed_forward(found: Cost, layer: nn.Module, tokens: int) -> None:
    """The cost of the feed-forward step; of experts, those that a token is routed to."""
    if not isinstance(layer, MixtureOfExperts):
        _matrices(found, "feed-forward", layer, tokens)
        return
    assert isinstance(layer.router, (TopK, Switch))
    _product(found, "feed-forward", tokens, *layer.router.weight.shape)
    working = layer.router.k if isinstance(layer.router, TopK) else 1
    for number, expert in enumerate(layer.experts):  # the weights of all are read: some token chooses each
        _matrices(found, "feed-forward", expert, tokens * working if number == 0 else 0)
    if layer.shared is not None:
        _matrices(found, "feed-forward", layer.shared, tokens)


def _matrices(found: Cost, name: str, module: nn.Module, tokens: int) -> None:
    """Every matrix inside, multiplied with so many vectors."""
    for linear in _linears(module):
        _product(found, name, tokens, linear.out_features, linear.in_features)


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (inner for inner in module.modules() if isinstance(inner, nn.Linear))


def _product(found: Cost, name: str, tokens: int, rows: int, columns: int) -> None:
    """A matrix ``(rows, columns)`` times so many vectors."""
    part = found.part(name)
    part.flop += 2 * tokens * rows * columns
    part.bytes += found.itemsize * (rows * columns + tokens * (rows + columns))
