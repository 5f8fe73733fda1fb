"""The base of all models: an embedding, a stack of layers, and a head."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from ..nn import Block, Cache, DecoderBlock, ForwardContext, FrontEnd, LearnedPositions
from ..nn.capture import decode_step
from ..nn.checks import refuse_spread
from ..nn.dropout import drawn_for
from ..outputs import Output
from ..tensors.shapes import wrong
from ..tensors.tracing import readable
from .config import Config, Recipe


class Stack(nn.Module):
    """Embedding and layers of one `Config`; base of the shapes.

    Args:
        config: what to make. Parameters come as PyTorch makes them, for training or to be overwritten.
        within: what the names of its layers begin with, when it is a part of another model.
    """

    def __init__(self, config: Config, within: str = "") -> None:
        super().__init__()
        self.config = config
        self.within = within
        self.embedding = config.embedding(config.vocabulary, config.width)
        self.scores = None if config.scores is None else config.scores(config.query_heads)
        self.layers = nn.ModuleList(_blocks(config, within))
        self.norm = None if config.final_norm is None else config.final_norm(config.width)
        self.head = None if config.head is None else config.head(config.vocabulary, config.width)

    @property
    def attention_names(self) -> tuple[str, ...]:
        """The names under which `limelight.watching` gathers each layer's self-attention, in order."""
        return tuple(f"{self.within}layers.{number}.attention" for number in range(self.config.layers))

    @property
    def learned_positions(self) -> bool:
        """Whether positions are rows of a learned table, which has none beyond ``config.limit``.

        Rotations, sinusoids and biases of the distance are computed instead, for any position.
        """
        return any(isinstance(part, (FrontEnd, LearnedPositions)) for part in self.embedding.modules())

    def forward(
        self,
        tokens: Tensor,
        *,
        layout: Layout | None = None,
        segments: Tensor | None = None,
        hidden: bool = False,
        logits: bool = True,
        cache: Cache | None = None,
        cross: ForwardContext | None = None,
        extrapolate: bool = False,
    ) -> Output:
        """Run the model.

        Args:
            tokens: ``(B, L)`` token ids, or what else the embedding reads (`limelight.nn.FrontEnd`).
            layout: which of them exist, in which document (`limelight.forms.layouts`); ``None``: one whole text a row.
            segments: ``(B, L)`` segment of each token, for models that have segments; ``None`` for 0.
            hidden: keep and return the hidden states after every layer.
            logits: whether to compute them; for 8,000 tokens of a 50,000-word vocabulary they take 1.6 GB. `head_on`
                computes them for chosen vectors.
            cache: what was read before; ``tokens`` are the next ones, and are added to it.
            cross: the context of attention to an encoder, for layers that have it; see `EncoderDecoder`.
            extrapolate: let a text be longer than the positions that the model was trained on, where positions are
                computed and not looked up (`learned_positions`). Quality beyond them is not to be expected.

        Raises:
            ArgumentError: tokens of a wrong shape or number, a text longer than the model's positions; a layout over
                several processes where a layer reads the tokens of others by itself.
        """
        if layout is not None and layout.spread:
            for part in self.modules():
                if logits or part is not self.head:
                    refuse_spread(part, layout)
        if cache is None:
            context = ForwardContext(layout, self._positions(tokens, layout, extrapolate), segments)
        else:
            B, L = self._sizes(tokens)
            step = cache.step(B, L, layout, tokens.device, layers=self.config.layers)
            self._check_length(step.longest, extrapolate)
            context = ForwardContext(layout, step.own_positions, segments, cache=step)
            cross = None if cross is None else replace(cross, cache=step)
        context.cross = cross
        before: list[Tensor] = []
        with nullcontext() if layout is None or torch.compiler.is_compiling() else drawn_for(layout):
            states = self._states(tokens, context, before if hidden else None)
        if context.cache is not None and cache is not None:
            cache.close(context.cache)
        if self.norm is not None:
            states = self.norm(states)
        scores = None
        if logits and self.head is not None:
            scores = self.head_on(self.head.chosen(states, context))  # type: ignore[operator]
        return Output(states, (*before, states) if hidden else None, scores)

    def _states(self, tokens: Tensor, context: ForwardContext, before: list[Tensor] | None) -> Tensor:
        """The states after the last layer; those before each are appended to ``before``."""
        states: Tensor = self.embedding(tokens, context)
        if self.scores is not None:
            context.scores = (self.scores(states),)
        found = None if before is not None else decode_step(self.layers, states, context)
        if found is not None:
            return found
        for layer in self.layers:
            if before is not None:
                before.append(states)
            states = layer(states, context)
        return states

    def head_on(self, states: Tensor) -> Tensor:
        """The logits ``(..., vocabulary)`` of chosen last vectors ``(..., width)``."""
        if self.head is None:
            raise wrong(
                "states",
                "can only become logits in a model with an output head",
                "this one has none",
                "Use the hidden states.",
            )
        table = getattr(getattr(self.embedding, "tokens", None), "weight", None)
        return self.head(states, table)  # type: ignore[no-any-return]

    def _positions(self, tokens: Tensor, layout: Layout | None, extrapolate: bool) -> Tensor:
        """Position of every token ``(B | 1, L)``; 0 for tokens that do not exist."""
        B, L = self._sizes(tokens)
        if layout is None:
            self._check_length(L, extrapolate)
            return torch.arange(L, device=tokens.device)[None]
        layout.check(B, L, L)
        at = layout.coordinates(B, L, L, tokens.device)
        exists = at.query_exists & at.key_exists
        positions = at.query_position.where(exists, 0)
        if readable(positions) and (positions.numel() or (B and layout.spread)):
            _check_together(positions, at.key_position.where(exists, 0))
            self._check_length(int(layout.text_lengths(positions).max()), extrapolate)
        return positions

    def _sizes(self, tokens: Tensor) -> tuple[int, int]:
        """The checked texts and tokens of the arguments."""
        if isinstance(self.embedding, FrontEnd):
            return self.embedding.sizes(tokens)
        self._check(tokens)
        B, L = tokens.shape
        return B, L

    def _check(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype not in (torch.int64, torch.int32):
            got = (
                f"{tokens.dtype} of shape {tuple(tokens.shape)}"
                if isinstance(tokens, Tensor)
                else type(tokens).__name__
            )
            raise wrong(
                "tokens", "must be a (B, L) tensor of int64 token ids", f"it is {got}", "tokens[None] adds the batch."
            )
        if readable(tokens) and tokens.numel():
            smallest, largest = (int(end) for end in tokens.aminmax())
            if smallest < 0 or largest >= self.config.vocabulary:
                raise wrong(
                    "tokens",
                    f"must lie between 0 and {self.config.vocabulary - 1}, the last token of the vocabulary",
                    f"they range from {smallest} to {largest}",
                    "Use the tokenizer of the same model; padding may have any id, and `layout` says where it is.",
                )

    def _check_length(self, length: int, extrapolate: bool) -> None:
        if self.config.limit is not None and length > self.config.limit:
            if extrapolate and not self.learned_positions:
                return
            raise wrong(
                "tokens",
                f"must fit the {self.config.limit} positions of this model ({self.config.family})",
                f"the longest text has {length} tokens",
                f"Split it into parts of at most {self.config.limit} tokens with special tokens, or use another model.",
            )


def _check_together(query: Tensor, key: Tensor) -> None:
    """Check that each token has one position, as a query and as a key."""
    query, key = torch.broadcast_tensors(query, key)  # type: ignore[no-untyped-call]
    apart = (query != key).nonzero()
    if len(apart):
        row, place = apart[0].tolist()
        raise wrong(
            "layout",
            "must give the query and the key of a token the same position",
            f"at place {place} of row {row} they have {query[row, place].item()} and {key[row, place].item()}",
            "Give Aligned equal query_start and key_start, and Padded or Packed one set of lengths.",
        )


def _blocks(config: Config, within: str) -> list[Block | DecoderBlock]:
    """The layers, in order."""
    blocks = [_block(config, number, f"{within}layers.{number}") for number in range(config.layers)]
    if config.shared:
        for block in blocks[1:]:
            _share(block, blocks[0])
    return blocks


def _block(config: Config, number: int, name: str) -> Block | DecoderBlock:
    """Layer ``number``: two steps or three, each with a norm of its own."""
    heads = {
        "query_heads": config.query_heads,
        "key_value_heads": config.key_value_heads,
        "head_width": config.head_width,
    }

    def step(inner: nn.Module, residual: Recipe = config.residual) -> nn.Module:
        return residual(inner, config.norm(config.width))

    attention = step(config.attentions[number](config.width, **heads, name=f"{name}.attention"))
    feed_forward = step(config.feed_forward(config.width), config.last_residual or config.residual)
    if config.cross is None:
        return Block(attention, feed_forward)
    return DecoderBlock(attention, step(config.cross(config.width, **heads, name=f"{name}.cross")), feed_forward)


def _share(module: nn.Module, owner: nn.Module) -> None:
    """Put the parts of ``owner`` that hold parameters in the place of those of its twin ``module``.

    The parts, not their parameters: whatever replaces a parameter later replaces it for both.
    """
    for name, part in owner.named_children():
        if next(part.parameters(recurse=False), None) is None:
            _share(getattr(module, name), part)
        else:
            setattr(module, name, part)
