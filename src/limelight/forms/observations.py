"""Observations: what is seen of the weights while they are computed, in memory that grows with the length.

``attention(..., observe=Observe(entropy=True, top=8))`` returns ``(output, Observations)``. All are exact, float32
(float64 for float64 inputs), in natural logarithms, before dropout; none has the size ``Lq * Lk``.

With ``p_ij`` the weights, ``s_ij`` the scores and ``p_sink`` the share of the sink, a row of weights sums to
``1 - p_sink``. An attention weight says where a value was taken from; it is not an explanation of the output.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..tensors.shapes import FLOATS, Shapes, check_tensor, describe, flag, sequence, whole_number, wrong
from ..tensors.torch_internals import backward_pass_id
from ..tensors.tracing import readable
from .descriptions import Description

MAX_PADDED_TOP = 1024  # `top` may be so much, however few the keys are


@dataclass(frozen=True, eq=False, repr=False)
class Observe(Description):
    """What to observe of a call. ``H`` is the number of observed heads; shapes are those of `Observations`.

    Args:
        logsumexp: ``log sum_j exp(s_ij)``, the sink included, ``(B, H, Lq)``; differentiable.
        max_score: the largest score a query sees, ``(B, H, Lq)``; ``-inf`` when it sees nothing.
        max_weight: the largest weight, ``(B, H, Lq)``.
        entropy: ``-sum_j p_ij log p_ij`` in nats, over the keys, ``(B, H, Lq)``; differentiable.
        distance: ``sum_j p_ij |position of j - position of i|``, ``(B, H, Lq)``.
        top: how many of the largest weights to keep, with their keys, ``(B, H, Lq, top)`` twice; where fewer keys
            are seen the key is -1 and the weight 0; of equal weights the lowest key comes first. At most ``Lk``, or
            1,024 where there are fewer keys.
        received: the total weight each key receives, ``(B, H, Lk)``, and how many queries could see it.
        features: ``(Lk, F)`` float: the weight each query gives to each feature of the keys, ``(B, H, Lq, F)``.
        rows: indices of queries whose weights to return whole, ``(B, H, R, Lk)``; differentiable.
        pairs: ``(P, 2)`` indices (query, key) whose weights to return, ``(B, H, P)``; differentiable.
        blocks: ``(bq, bk)``: the sum of the weights in each block of ``bq`` queries by ``bk`` keys, and its number
            of visible pairs: a heat map of any length, ``(B, H, ceil(Lq / bq), ceil(Lk / bk))`` twice.
        heads: the query heads to observe, in this order; ``None`` for all.
    """

    logsumexp: bool = False
    max_score: bool = False
    max_weight: bool = False
    entropy: bool = False
    distance: bool = False
    top: int = 0
    received: bool = False
    features: Tensor | None = None
    rows: tuple[int, ...] | Tensor | None = None
    pairs: tuple[tuple[int, int], ...] | Tensor | None = None
    blocks: tuple[int, int] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("logsumexp", "max_score", "max_weight", "entropy", "distance", "received"):
            flag(name, getattr(self, name))
        whole_number("top", self.top, at_least=0)
        for name in ("rows", "heads"):
            indices = getattr(self, name)
            if indices is not None and not isinstance(indices, Tensor):
                indices = sequence(name, indices, "a sequence of indices", f"{name}=[0, 5]")
                object.__setattr__(self, name, tuple([whole_number(name, i, at_least=0) for i in indices]))
        if self.pairs is not None and not isinstance(self.pairs, Tensor):
            what, example = "a sequence of (query, key) pairs", "pairs=[(0, 5), (1, 5)]"
            pairs = [sequence("pairs", pair, what, example) for pair in sequence("pairs", self.pairs, what, example)]
            object.__setattr__(self, "pairs", tuple([_two("pairs", pair, 0, what, example) for pair in pairs]))
        if self.blocks is not None:
            what, example = "two numbers, queries and keys of a block", "blocks=(64, 64)"
            blocks = sequence("blocks", self.blocks, what, example)
            object.__setattr__(self, "blocks", _two("blocks", blocks, 1, what, example))
        if self.features is not None:
            _check_features(self.features)
        for name, ranks in (("rows", (1,)), ("heads", (1,)), ("pairs", (2,))):
            indices = getattr(self, name)
            if isinstance(indices, Tensor):
                _check_index_tensor(name, indices, ranks)

    def check(self, shapes: Shapes) -> None:
        """Raise `ArgumentError` when an index or a feature does not fit the call."""
        if self.top > max(shapes.Lk, MAX_PADDED_TOP):
            rule = f"must be at most {max(shapes.Lk, MAX_PADDED_TOP)} of Lk = {shapes.Lk} keys"
            raise wrong("top", rule, f"it is {self.top}", "No query sees more keys than there are.")
        if self.features is not None and _check_features(self.features).shape[0] != shapes.Lk:
            got = tuple(self.features.shape)
            raise wrong(
                "features", f"must be (Lk, F) with Lk = {shapes.Lk}", f"its shape is {got}", "One row for each key."
            )
        for name, indices, size, what in (
            ("heads", self.heads, shapes.Hq, "query heads"),
            ("rows", self.rows, shapes.Lq, "queries"),
        ):
            if indices is not None and readable(indices):
                _check_indices(name, torch.as_tensor(indices, device="cpu"), size, what)
        if self.pairs is not None and readable(self.pairs):
            pairs = torch.as_tensor(self.pairs, device="cpu").reshape(-1, 2)
            _check_indices("pairs", pairs[:, 0], shapes.Lq, "queries")
            _check_indices("pairs", pairs[:, 1], shapes.Lk, "keys")


def _two(name: str, pair: tuple[object, ...], at_least: int, what: str, example: str) -> tuple[int, int]:
    if len(pair) != 2:
        raise wrong(name, f"must be {what}", f"it holds {describe(pair)}", f"Write {example}.")
    return whole_number(name, pair[0], at_least=at_least), whole_number(name, pair[1], at_least=at_least)


def _check_features(features: object) -> Tensor:
    tensor = check_tensor("features", features)
    if tensor.dim() != 2 or tensor.dtype not in FLOATS:
        raise wrong("features", "must be a float tensor (Lk, F)", f"it is {describe(tensor)}", "One row for each key.")
    return tensor


def _check_index_tensor(name: str, indices: Tensor, ranks: tuple[int, ...]) -> None:
    check_tensor(name, indices)
    whole = not (indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool)
    if not whole or indices.dim() not in ranks or (name == "pairs" and indices.shape[1] != 2):
        what = "(P, 2) indices" if name == "pairs" else "one dimension of indices"
        raise wrong(name, f"must be an integer tensor of {what}", f"it is {describe(indices)}", "Indices count from 0.")


def _check_indices(name: str, indices: Tensor, size: int, what: str) -> None:
    if indices.numel() and (int(indices.min()) < 0 or int(indices.max()) >= size):
        raise wrong(
            name,
            f"must hold indices of {what}, from 0 to {size - 1}",
            f"they run from {int(indices.min())} to {int(indices.max())}",
            "Indices count from 0.",
        )


@dataclass(eq=False, repr=False)
class Observations:
    """The observations of one call, as `Observe` defines them; ``None`` where a field was not requested.

    ``H`` is the number of observed heads. Float fields are float32 (float64 for float64 inputs); a dimension of size 1
    is shared by all rows or heads.
    """

    logsumexp: Tensor | None = None  # (B, H, Lq)
    max_score: Tensor | None = None  # (B, H, Lq)
    max_weight: Tensor | None = None  # (B, H, Lq)
    entropy: Tensor | None = None  # (B, H, Lq)
    distance: Tensor | None = None  # (B, H, Lq)
    top_weights: Tensor | None = None  # (B, H, Lq, k)
    top_keys: Tensor | None = None  # (B, H, Lq, k) int64
    received: Tensor | None = None  # (B, H, Lk)
    received_by: Tensor | None = None  # (B | 1, H | 1, Lk) int64: how many queries could see the key
    features: Tensor | None = None  # (B, H, Lq, F)
    rows: Tensor | None = None  # (B, H, R, Lk)
    pairs: Tensor | None = None  # (B, H, P)
    blocks: Tensor | None = None  # (B, H, ceil(Lq / bq), ceil(Lk / bk))
    block_pairs: Tensor | None = None  # (B | 1, H | 1, the same two) int64: visible pairs of each block

    def seen(self) -> dict[str, Tensor]:
        """The fields that are not ``None``, by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> Observations:
        """Observations with ``change`` applied to every tensor: ``observations.map(Tensor.cpu)``."""
        return Observations(**{name: change(tensor) for name, tensor in self.seen().items()})

    def __repr__(self) -> str:
        return f"Observations({', '.join(f'{name}: {tuple(t.shape)}' for name, t in self.seen().items())})"


class Seen(Mapping[str, Observations]):
    """What `watching` has gathered: a read-only mapping from a layer's name to the observations of its last call.

    ::

        for name, last in seen.items():
            print(name, last.entropy.shape)
        first, *others = seen.calls("layers.3.attention")  # of a layer that was called several times

    Names are in the order of the first calls; a call without one is named ``"attention.0"``, ``"attention.1"``, ... A
    subclass may define `request` to choose what is observed of each call, `add` to use each call's observations at
    once and to keep only what it needs of them, and `replace` to read the operands and to change the output.

    Args:
        observe: what to observe of each call.
    """

    def __init__(self, observe: Observe) -> None:
        self.observe = observe
        self.thread = threading.get_ident()
        self._calls: dict[str, list[Observations]] = {}

    def request(self, name: str | None, query: Tensor, key: Tensor) -> Observe:
        """What to observe of the call that begins; by default ``observe``, whatever the call.

        Args:
            name: of the layer that calls.
            query: ``(B, Hq, Lq, D)``.
            key: ``(B, Hkv, Lk, D)``.
        """
        return self.observe

    def replace(self, name: str | None, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        """The output that the layer goes on with, ``(B, Hq, Lq, Dv)``; by default the ``output`` of the call.

        A change of it is an intervention: ``output.index_fill(1, heads, 0.0)`` silences heads. The operands are to be
        read, not written to.

        Args:
            name: of the layer that calls.
            query: ``(B, Hq, Lq, D)``, positions included.
            key: ``(B, Hkv, Lk, D)``, positions included.
            value: ``(B, Hkv, Lk, Dv)``.
            output: the result of the call.
        """
        return output

    def add(self, name: str | None, observations: Observations) -> None:
        """Keep the observations of one call of the layer ``name``."""
        name = f"attention.{len(self._calls)}" if name is None else name
        self._calls.setdefault(name, []).append(observations.map(Tensor.detach))

    def calls(self, name: str) -> tuple[Observations, ...]:
        """The observations of all calls of the layer ``name``, in order.

        Raises:
            KeyError: no layer of this name was called.
        """
        if name not in self._calls:
            known = ", ".join(self._calls) or "none"
            raise KeyError(f"no layer {name!r} was seen; the layers seen are: {known}")
        return tuple(self._calls[name])

    def __getitem__(self, name: str) -> Observations:
        return self.calls(name)[-1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._calls)

    def __len__(self) -> int:
        return len(self._calls)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"<Seen: {len(self)} layers, {sum(map(len, self._calls.values()))} calls>"


# The watchers of the calls being made now, innermost last. A plain list: reading it costs nothing in every call.
_watchers: list[Seen] = []


@contextmanager
def watching(observe: Observe | Seen) -> Iterator[Seen]:
    """Observe every attention call made inside, keyed by the name of its layer.

    ::

        with limelight.watching(Observe(entropy=True)) as seen:
            model(tokens)
        seen["layers.3.attention"].entropy  # (B, H, Lq)

    A call that is repeated in the backward pass by activation checkpointing is counted once.

    Args:
        observe: what to observe; or an object of a subclass of `Seen`, whose `Seen.add` gets each call's observations
            as the call ends, instead of their being kept.

    Yields:
        The observations gathered so far, by the names of layers.

    Raises:
        ArgumentError: ``observe`` is neither.
    """
    if not isinstance(observe, (Observe, Seen)):
        got = f"it is {describe(observe)}"
        raise wrong("observe", "must be an Observe, or a Seen of your own", got, "Pass Observe(entropy=True).")
    seen = observe if isinstance(observe, Seen) else Seen(observe)
    _watchers.append(seen)
    try:
        yield seen
    finally:
        _watchers.remove(seen)


def current_watcher(recorded: bool = False) -> Seen | None:
    """The innermost watcher of this thread, unless the call is a repetition inside a backward pass.

    Raises:
        RuntimeError: there is one, but the call is ``recorded`` by a tracer and not computed.
    """
    if not _watchers:
        return None
    if recorded:
        raise RuntimeError(
            "watching() does not see into what is recorded (torch.compile, torch.export, torch.jit.trace, make_fx, "
            "fake tensors); observe the model itself, before it is recorded."
        )
    if backward_pass_id() != -1:
        return None
    thread = threading.get_ident()
    return next((seen for seen in reversed(_watchers) if seen.thread == thread), None)
