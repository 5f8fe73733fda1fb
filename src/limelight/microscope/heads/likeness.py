"""Heads whose scores are alike."""

from __future__ import annotations

from typing import Any

import numpy as np

from .measure import Result
from .sums import Numbers

MAX_ALIKE = 5


def similar_heads(results: list[Result], profile: Numbers | None) -> list[dict[str, Any]]:
    """For every head the five that are most alike, by the cosine of their scores, each standardised over all heads.

    Args:
        results: of all measures; a description of layers is left out, as is a score that some head lacks.
        profile: ``(N, H, bins)`` shares of each distance.
    """
    shapes = [result.total.score.shape for result in results if result.total.score.shape[1] > 1]
    if not shapes:
        return []
    layers, heads = shapes[0]
    columns = [result.total.score.reshape(-1) for result in results if result.total.score.shape == (layers, heads)]
    if profile is not None:
        columns += list(profile.reshape(layers * heads, -1).T)
    known = [column for column in columns if np.isfinite(column).all()]
    if not known or layers * heads < 2:
        return []
    scores = np.stack(known, 1)
    scores = scores[:, scores.std(0) > 1e-9]
    scores = (scores - scores.mean(0)) / scores.std(0)
    scores /= np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-12)
    cosine = scores @ scores.T
    np.fill_diagonal(cosine, -np.inf)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, : min(MAX_ALIKE, layers * heads - 1)]
    return [
        {
            "layer": head // heads,
            "head": head % heads,
            "other_layer": int(other) // heads,
            "other_head": int(other) % heads,
            "cosine": float(f"{cosine[head, other]:.4g}"),
        }
        for head, others in enumerate(order)
        for other in others
    ]
