"""Encoder-decoders: a decoder with cross-attention to an encoded source (Vaswani et al. 2017, arXiv:1706.03762)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..forms.layouts import Aligned, KeyMask, Layout
from ..nn import Cache, ForwardContext
from ..outputs import Encoded, Output
from ..tensors.shapes import wrong
from .config import Config
from .stack import Stack


class EncoderDecoder(Stack):
    """A decoder whose layers have cross-attention to the hidden states of an encoder.

    Args:
        config: that of the decoder, with the ``encoder``'s inside.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.encoder is None or config.cross is None:
            raise wrong(
                "config", "must have an `encoder` and attention `cross` to it", "one is None", "Take DecoderOnly."
            )
        self.encoder = Stack(config.encoder, within="encoder.")
        if config.one_table:
            self.encoder.embedding.tokens = self.embedding.tokens

    @property
    def cross_names(self) -> tuple[str, ...]:
        """The names under which `limelight.watching` gathers each layer's cross-attention, in order."""
        return tuple(f"layers.{number}.cross" for number in range(self.config.layers))

    def encode(self, source: Tensor, *, layout: Layout | None = None, hidden: bool = False) -> Encoded:
        """Run the encoder on a source; the result serves every step of the decoder.

        Args:
            source: ``(B, Lk)`` token ids, or what else the encoder reads.
            layout: which tokens of it exist.
            hidden: keep the hidden states after every layer.
        """
        read = self.encoder(source, layout=layout, hidden=hidden)
        return Encoded(read.states, layout, read.hidden)

    def forward(  # type: ignore[override]  # a source takes the place of `cross`
        self,
        tokens: Tensor,
        *,
        source: Encoded | Tensor,
        source_layout: Layout | None = None,
        layout: Layout | None = None,
        hidden: bool = False,
        logits: bool = True,
        cache: Cache | None = None,
    ) -> Output:
        """Run the decoder on ``tokens``, and the encoder before it unless it has read the source.

        >>> import torch, limelight
        >>> model = limelight.load("whisper-tiny-en").network  # doctest: +SKIP
        >>> encoded = model.encode(features)  # doctest: +SKIP
        >>> model(torch.tensor([[50257, 50362]]), source=encoded).logits.shape  # doctest: +SKIP
        torch.Size([1, 2, 51864])

        Args:
            tokens: ``(B, L)`` token ids of what is being written, the start token included.
            source: what the encoder reads, or its result (`encode`), which serves every step of generation.
            source_layout: which tokens of a source exist that is not read yet.
            layout: which of the ``tokens`` exist, in which document.
            hidden: keep and return the hidden states after every layer.
            logits: whether to compute the logits.
            cache: the tokens before these; it keeps the keys and values of the source too.

        Raises:
            ArgumentError: tokens of a wrong shape, a text longer than the model's positions; rows or layouts of source
                and tokens that do not fit together.
        """
        _check_processes(layout, source.layout if isinstance(source, Encoded) else source_layout)
        if not isinstance(source, Encoded):
            source = self.encode(source, layout=source_layout, hidden=hidden)
        elif source_layout is not None:
            raise wrong("source_layout", "belongs to a source that is not read yet", "this one is", "Leave it out.")
        if len(source.states) != len(tokens):
            raise wrong(
                "source",
                "must have a row for each row of `tokens`",
                f"`source` has {len(source.states)} rows, `tokens` {len(tokens)}",
                "Repeat the rows of one or the other.",
            )
        cross = ForwardContext(
            _cross_layout(source, layout),
            torch.zeros(1, 1, dtype=torch.int64, device=tokens.device),
            source=source.states,
        )
        written = super().forward(tokens, layout=layout, hidden=hidden, logits=logits, cache=cache, cross=cross)
        return written._replace(encoded=source)


def _check_processes(layout: Layout | None, source_layout: Layout | None) -> None:
    """Check that source and tokens lie on the same processes."""
    spread = [one is not None and one.spread for one in (layout, source_layout)]
    if spread[0] != spread[1]:
        raise wrong(
            "source_layout",
            "must be over several processes if and only if `layout` is",
            f"it is {source_layout!r}, and `layout` is {layout!r}",
            "Give both a ContextParallel of the same group.",
        )
    if layout is not None and source_layout is not None and layout.spread:
        layout.cross(source_layout)  # before anything is computed


def _cross_layout(source: Encoded, layout: Layout | None) -> Layout | None:
    """The layout of cross-attention: a token sees all existing source tokens of its own document."""
    if any(one is not None and (one.spread or one.documents != 1) for one in (layout, source.layout)):
        return (layout or Aligned()).cross(source.layout or Aligned())
    if source.layout is None:
        return None
    B, L, _ = source.states.shape
    exists = source.layout.coordinates(B, L, L, source.states.device)
    return KeyMask((exists.query_exists & exists.key_exists).expand(B, L))
