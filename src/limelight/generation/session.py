"""A decoding session: a network, its cache, and the scores of the next token of every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.stack import Stack
from ..nn import Cache, Keep
from ..outputs import Encoded
from ..tensors.shapes import ArgumentError, wrong
from .prompts import padded


class Session:
    """One run of a network over rows that grow, with all that it has read in a cache.

    Args:
        network: a decoder, or an encoder with a decoder.
        source: the encoded source of each row; ``None`` for a model without an encoder.
        keep: which keys the cache keeps; ``None`` for all that a later token can see.
        dtype: of 8 bits, in which the cache keeps keys and values; ``None`` for their own.
    """

    def __init__(
        self,
        network: Stack,
        source: Encoded | None = None,
        keep: Keep | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        self.network, self.source, self.cache = network, source, Cache(keep=keep, dtype=dtype)
        self.device = next(network.parameters()).device
        self._read: Sequence[Sequence[int]] = ()  # what the last scores follow

    @torch.no_grad()
    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read the next tokens of each row, at least one; the scores ``(R, V)`` of what follows, at least float32."""
        self._read = rows
        ids, layout = padded(rows, self.device)
        across = {} if self.source is None else {"source": self.source}
        states = self.network(ids, layout=layout, logits=False, cache=self.cache, **across).states
        last = states[:, -1]
        if layout is not None:
            ends = torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64, device=self.device)
            last = states[torch.arange(len(rows), device=self.device), ends]
        scores = self.network.head_on(last)
        return scores.to(torch.promote_types(scores.dtype, torch.float32))

    def select(self, rows: Sequence[int]) -> None:
        """Continue with these rows, in this order; a row may occur several times."""
        chosen = torch.tensor(rows, dtype=torch.int64, device="cpu")
        self.cache.select(chosen)
        if self.source is not None:
            self.source = self.source.select(chosen)

    def logprobs(self, scores: Tensor, step: int) -> Tensor:
        """Log-probabilities ``(R, V)`` of the scores that `read` gave before token number ``step`` (from 0) is chosen.

        Raises:
            ArgumentError: a row has NaN or plus infinity among its scores, or nothing but minus infinity.
        """
        logprobs = scores.log_softmax(-1)
        if bool(logprobs[:, 0].isnan().any()):  # then the whole row is NaN
            row = int(logprobs[:, 0].isnan().nonzero()[0])
            raise wrong(
                "model",
                "must give finite scores to choose a token from",
                f"before new token {step + 1} of row {row} they hold {_special(scores[row])}{self._where()}",
                "Look for such values in the weights, or load the model in another dtype (float32 has the widest range "
                "but float64).",
            )
        return logprobs

    @torch.no_grad()
    def _where(self) -> str:
        """The first module that makes something not finite of the last tokens, without what stood before them."""
        found: list[str] = []

        def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                    found.append(name)

            return hook

        hooks = [module.register_forward_hook(look(name)) for name, module in self.network.named_modules() if name]
        try:
            ids, layout = padded(self._read, self.device)
            across = {} if self.source is None else {"source": self.source}
            self.network(ids, layout=layout, **across)
        finally:
            for hook in hooks:
                hook.remove()
        return f" (the first module whose output is not finite: {found[0]})" if found else ""


def nothing_allowed(step: int) -> ArgumentError:
    """The error for a step in which every token is excluded."""
    return wrong(
        "model",
        "must be allowed some token",
        f"its configuration (suppress_tokens, bad_words_ids, ...) leaves none as new token {step + 1}",
        "Correct generation_config.json or config.json.",
    )


def _special(scores: Tensor) -> str:
    """Which values make scores useless."""
    kinds = {
        "NaN": scores.isnan().any(),
        "plus infinity": scores.isposinf().any(),
        "minus infinity alone": scores.isneginf().all(),
    }
    return " and ".join(name for name, there in kinds.items() if there)
