"""Prompts whose tokens are divided among processes, for generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..forms.layouts import Layout
from ..models import Stack
from ..nn import Cache
from .context import ContextParallel
from .patterns import patterns_of


@dataclass(frozen=True)
class ContextParallelPrefill:
    """Reads a long prompt with its tokens divided among the ranks of a group; generation goes on with all keys.

    Each rank computes its own tokens of every layer, with `ContextParallel`, and keeps the keys and values of all, so
    that the next tokens are those of one process, and cost no communication. All ranks call ``generate`` with the same
    arguments, and return the same texts::

        prefill = ContextParallelPrefill(mesh["context"])
        text = model.generate(prompt, prefill=prefill).text

    Of the prompt a rank holds: keys and values of all layers, as one process does (of a causal window those of the
    window); hidden states and activations of its own tokens; and while a layer is computed, the keys and values that
    its queries see, and once more those that it keeps. With a network divided by `tensor_plan` over another dimension
    of the mesh, each rank has those of its heads.

    Args:
        group: a process group, or a mesh of one dimension.
        heads_at_once: key heads that a call exchanges and computes at a time; ``None`` for all.
    """

    group: Any
    heads_at_once: int | None = None

    def read(self, network: Stack, tokens: Tensor, layout: Layout | None, last: Tensor, cache: Cache) -> Tensor:
        """Read prompts into an empty cache; every rank calls it.

        Args:
            network: a model without an encoder, with the same weights on every rank of the group.
            tokens: ``(R, L)`` token ids, the same on every rank.
            layout: which of them exist: `limelight.Padded`, or ``None``.
            last: ``(R,)`` int64, the column of each row's last token.
            cache: keeps the keys and values of all tokens, on every rank.

        Returns:
            ``(R, width)``, the last state of each row, on every rank.
        """
        spread = ContextParallel.balanced(
            self.group,
            tokens.shape[1],
            patterns=patterns_of(network),
            layout=layout,
            heads_at_once=self.heads_at_once,
        )
        states = network(spread.mine(tokens), layout=spread, logits=False, cache=cache).states
        row, place = (spread.index.to(last.device) == last[:, None]).nonzero(as_tuple=True)
        found = torch.zeros(len(last), states.shape[-1], dtype=states.dtype, device=states.device)
        found[row] = states[row, place]
        return spread.total(found)  # one rank has each, the others zeros
