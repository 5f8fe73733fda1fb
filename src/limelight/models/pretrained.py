"""A model with weights, its tokenizer, and where both came from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..shapes import wrong
from ..text import Tokenizer, Tokens
from .config import Config
from .stack import Output, Stack

if TYPE_CHECKING:
    from ..layouts import Layout


@dataclass(frozen=True)
class Pretrained:
    """What `limelight.load` returns.

    >>> import limelight
    >>> model = limelight.load("minilm")  # doctest: +SKIP
    >>> tokens = model.read(["The bank is near the river.", "Hello."])  # doctest: +SKIP
    >>> model(tokens, hidden=True).hidden[3].shape  # doctest: +SKIP
    torch.Size([2, 9, 384])

    Args:
        name: what was asked for.
        network: the model, a `torch.nn.Module` in evaluation mode whose parameters want no gradient (training asks for
            them: ``model.network.train().requires_grad_()``).
        source: the folder or file that the weights came from.
        unused: weights of the checkpoint that this model leaves aside, each with the reason.
        tokenizer_or_why: the tokenizer, or why there is none.
        marks: ids of the tokens that have a part to play, by the names that published configurations give them:
            ``{"eos_token_id": 2}``.
    """

    name: str
    network: Stack
    source: Path
    unused: tuple[tuple[str, str], ...]
    tokenizer_or_why: Tokenizer | str
    marks: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """What the network is made of."""
        return self.network.config

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's own tokenizer."""
        if isinstance(self.tokenizer_or_why, str):
            raise wrong(
                "tokenizer",
                "must come with the checkpoint to read text",
                self.tokenizer_or_why,
                "Pass token ids instead.",
            )
        return self.tokenizer_or_why

    def read(self, texts: str | Sequence[str], *, side: str = "right") -> Tokens:
        """Cut one text or several into tokens, on the device of the network; see `limelight.text.Tokenizer`."""
        return self.tokenizer(texts, side=side).to(next(self.network.parameters()).device)

    def __call__(
        self,
        tokens: str | Sequence[str] | Tokens | Tensor,
        *,
        layout: Layout | None = None,
        segments: Tensor | None = None,
        hidden: bool = False,
        logits: bool = True,
    ) -> Output:
        """Run the network on texts, on what `read` made of them, or on token ids; see `Stack.forward`."""
        if not isinstance(tokens, (Tokens, Tensor)):
            tokens = self.read(tokens)
        if isinstance(tokens, Tokens):
            if layout is not None:
                raise wrong(
                    "layout", "belongs to token ids", "`tokens` are texts, which have their own", "Leave it out."
                )
            layout = tokens.layout
            tokens = tokens.ids
        return self.network(tokens, layout=layout, segments=segments, hidden=hidden, logits=logits)  # type: ignore[no-any-return]

    def to(self, where: torch.device | str | torch.dtype) -> Pretrained:
        """Move the network to another device or dtype, in place."""
        self.network.to(where)
        return self

    def save(
        self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, shard_bytes: int = 5 * 10**9
    ) -> Path:
        """Write the model as its family publishes such models: `limelight.load` and ``transformers`` read the folder.

        It holds ``config.json``, the weights as safetensors, and the tokenizer. Weights that were left `unused` are not
        in it. The folder appears in one step when everything in it has reached the disk. No second copy of the weights
        is made in memory, beyond those of one shard whose dtype or order changes.

        >>> import limelight
        >>> limelight.load("smollm2").save("smollm2-bf16", dtype=torch.bfloat16)  # doctest: +SKIP

        Args:
            folder: a new or an empty folder.
            dtype: what the numbers are stored as; ``None`` for their own.
            shard_bytes: size from which on the weights are cut into several files with an index.

        Raises:
            ArgumentError: a folder that holds something already.
        """
        from ..checkpoints.save import save

        return save(self, folder, dtype=dtype, shard_bytes=shard_bytes)

    def __repr__(self) -> str:
        c = self.config
        heads = f"{c.query_heads} x {c.head_width}" + (f" over {c.key_heads}" if c.key_heads != c.query_heads else "")
        return f"<{self.name}: {c.family}, {c.layers} layers, heads {heads}, width {c.width}, up to {c.limit} tokens>"
