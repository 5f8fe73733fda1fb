"""A decoding session: a network, its cache, and the scores of the next token of every row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..models.stack import Stack
from ..nn import Cache, Keep
from ..outputs import Encoded
from ..tensors.shapes import ArgumentError, wrong
from .prompts import padded


class Prefill(Protocol):
    """How the prompts of a model without an encoder are read: `limelight.distributed.ContextParallelPrefill`."""

    def read(self, network: Stack, tokens: Tensor, layout: Layout | None, last: Tensor, cache: Cache) -> Tensor:
        """Read prompts into an empty cache.

        Args:
            network: the model.
            tokens: ``(R, L)`` token ids.
            layout: which of them exist.
            last: ``(R,)`` int64, the column of each row's last token.
            cache: keeps the keys and values of all tokens.

        Returns:
            ``(R, width)``, the last state of each row.
        """


class Session:
    """One run of a network over rows that grow, with all that it has read in a cache.

    Args:
        network: a decoder, or an encoder with a decoder.
        source: the encoded source of each row; ``None`` for a model without an encoder.
        keep: which keys the cache keeps; ``None`` for all that a later token can see.
        prefill: how the prompts are read; ``None`` for as the tokens after them.
        dtype: of 8 bits, in which the cache keeps keys and values; ``None`` for their own.
    """

    def __init__(
        self,
        network: Stack,
        source: Encoded | None = None,
        keep: Keep | None = None,
        prefill: Prefill | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        if prefill is not None and source is not None:
            got = f"this is {network.config.family}"
            raise wrong("prefill", "is for models without an encoder", got, "Leave it out.")
        self.prefill = prefill
        self.network, self.source, self.cache = network, source, Cache(keep=keep, dtype=dtype)
        self.device = next(network.parameters()).device
        self._read: Sequence[Sequence[int]] = ()  # what the last scores follow

    @torch.no_grad()
    def read(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Read the next tokens of each row, at least one; the scores ``(R, V)`` of what follows, at least float32."""
        prefill = None if self._read else self.prefill
        self._read = rows
        ids, layout = padded(rows, self.device)
        if prefill is not None:
            return self._scores(prefill.read(self.network, ids, layout, self._ends(rows), self.cache))
        across = {} if self.source is None else {"source": self.source}
        states = self.network(ids, layout=layout, logits=False, cache=self.cache, **across).states
        last = states[:, -1]
        if layout is not None:
            last = states[torch.arange(len(rows), device=self.device), self._ends(rows)]
        return self._scores(last)

    def _ends(self, rows: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor([len(row) - 1 for row in rows], dtype=torch.int64, device=self.device)

    def _scores(self, last: Tensor) -> Tensor:
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
