"""Scores of keys for kvpress (NVIDIA), from observations in linear memory in the place of eager's weights.

A press of kvpress evicts the keys with the lowest ``score`` after the prompt. `Score` is the half of a press that
scores, by a ranking of `limelight.nn`; ``ScorerPress`` is the other half::

    from dataclasses import dataclass
    from kvpress import ScorerPress
    from limelight.integrations.kvpress import Score
    from limelight.nn import Received

    @dataclass
    class HeavyHitters(Score, ScorerPress):
        by = Received()

    with HeavyHitters(compression_ratio=0.75)(model):  # any attn_implementation
        model(inputs)

kvpress is not needed to import this module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..forms.observations import Observe
from ..forms.patterns import Causal
from ..nn.cache import HeldKeys, Importance, Received
from ..nn.cache.policies import ranked
from ..operator.attention import attention
from ..tensors.shapes import wrong


class Score:
    """The method ``score`` of a press, by an `Importance`.

    Attributes:
        by: how keys are ranked; `Received` scores as ``ObservedAttentionPress``, `LastQueries` as ``SnapKVPress``.
    """

    by: Importance = Received()

    def score(
        self,
        module: nn.Module,
        hidden_states: Tensor,
        keys: Tensor,
        values: Tensor,
        attentions: Tensor | None,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """``(B, Hkv, L)``: the scores of the keys of one layer; the largest are kept.

        Called by kvpress, whose arguments these are, for whole texts without padding.

        Args:
            module: the attention layer, with a ``q_proj`` and a ``head_dim``, whose queries are rotated in halves.
            hidden_states: ``(B, L, width)``, what it read.
            keys: ``(B, Hkv, L, D)``, rotated.
            values: ``(B, Hkv, L, Dv)``.
            attentions: not used.
            kwargs: of the layer's ``forward``, with ``position_embeddings``, the cosines and sines ``(B | 1, L, D)``.

        Raises:
            ArgumentError: a layer of another kind.
        """
        B, heads, L, _ = keys.shape
        positions = torch.arange(L, device=keys.device).expand(B, heads, L)
        received = last = None
        if self.by.observes:
            received = _received(module, hidden_states, keys, values, kwargs)
        if self.by.window:
            count = min(self.by.window, L)
            last = _received(module, hidden_states[:, -count:], keys, values, kwargs) / count
        after = torch.full((B, 1, 1), L, device=keys.device)
        held = HeldKeys(positions, torch.ones_like(positions, dtype=torch.bool), after, received, last)
        scores = ranked(self.by, held)
        return scores.masked_fill(positions >= L - self.by.window, torch.inf)


def _received(module: nn.Module, hidden_states: Tensor, keys: Tensor, values: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """``(B, Hkv, L)``: the weight of the keys from the last queries, the mean over the query heads of each key head."""
    query = _queries(module, hidden_states, kwargs)
    scale = getattr(module, "scaling", None)
    observe = Observe(received=True)
    _, seen = attention(query, keys, values, pattern=Causal(), scale=scale, observe=observe)
    assert seen.received is not None
    B, heads, L, _ = keys.shape
    return seen.received.view(B, heads, -1, L).mean(2)


def _queries(module: Any, hidden_states: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """The rotated queries of a layer, ``(B, Hq, L, D)``, of its last hidden states."""
    rotation = kwargs.get("position_embeddings")
    if rotation is None or not hasattr(module, "q_proj") or not hasattr(module, "head_dim"):
        got = f"{type(module).__name__} has no q_proj, head_dim or position_embeddings"
        way_out = "Llama, Mistral, Qwen and their relatives have them."
        raise wrong("module", "must be an attention layer with rotary positions", got, way_out)
    query = module.q_proj(hidden_states).unflatten(-1, (-1, module.head_dim))
    query = (module.q_norm(query) if hasattr(module, "q_norm") else query).transpose(1, 2)
    cos, sin = (x[:, None, -hidden_states.shape[1] :] for x in rotation)
    first, second = query.chunk(2, dim=-1)
    rotated: Tensor = query * cos + torch.cat((-second, first), dim=-1) * sin
    return rotated
