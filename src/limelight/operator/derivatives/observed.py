"""Observations of a call that is computed in chunks: their axes, and the order in which they are computed."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from ...forms.observations import Observations, Observe

#: Axes of every observation but the logsumexp, which is an output of its own.
AXES = {
    "max_score": "bhq", "max_weight": "bhq", "entropy": "bhq", "distance": "bhq", "top_weights": "bhq.",
    "top_keys": "bhq.", "received": "bhk", "received_by": "bhk", "features": "bhq.", "rows": "bhrk", "pairs": "bhp",
    "blocks": "bhxy", "block_pairs": "bhxy",
}  # fmt: skip
#: Those that have derivatives.
DIFFERENTIABLE = {"entropy", "rows", "pairs"}
_ASKED_BY = {"top_weights": "top", "top_keys": "top", "received_by": "received", "block_pairs": "blocks"}


def names(observe: Observe) -> tuple[str, ...]:
    """The fields of `Observations` that are asked for, but the logsumexp."""
    asked = {name: getattr(observe, _ASKED_BY.get(name, name)) for name in AXES}
    return tuple(
        [name for name, value in asked.items() if value is not None and not (isinstance(value, int) and not value)]
    )


def in_order(observe: Observe) -> Observe | None:
    """The observations to compute for ``observe``: all heads, chosen rows and pairs in the order of the queries;
    ``None`` if only the logsumexp is requested.
    """
    rows, pairs = observe.rows, observe.pairs
    observe = dataclasses.replace(
        observe,
        logsumexp=False,
        heads=None,
        rows=None if rows is None else tuple(sorted(torch.as_tensor(rows, device="cpu").reshape(-1).tolist())),
        pairs=None
        if pairs is None
        else tuple(sorted(map(tuple, torch.as_tensor(pairs, device="cpu").reshape(-1, 2).tolist()))),
    )
    return observe if names(observe) else None


def as_asked(observations: Observations, asked: Observe) -> Observations:
    """Observations of `in_order` with the heads, and the order of rows and pairs, that the caller asked for."""
    if asked.rows is not None:
        assert observations.rows is not None
        rows = torch.as_tensor(asked.rows, device="cpu").reshape(-1).tolist()
        observations.rows = observations.rows[:, :, _ranks(rows)]
    if asked.pairs is not None:
        assert observations.pairs is not None
        pairs = [tuple(pair) for pair in torch.as_tensor(asked.pairs, device="cpu").reshape(-1, 2).tolist()]
        observations.pairs = observations.pairs[:, :, _ranks(pairs)]
    if asked.heads is None:
        return observations
    heads = list(asked.heads)
    return observations.map(lambda tensor: tensor if tensor.shape[1] == 1 else tensor[:, heads])


def _ranks(values: list[Any]) -> list[int]:
    """The index of each of the values in their sorted list."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0] * len(values)
    for rank, n in enumerate(order):
        ranks[n] = rank
    return ranks
