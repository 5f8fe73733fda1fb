"""Our own models as subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...forms.layouts import Padded
from ...generation import Sampler
from ...generation.prompts import decoder_beginning
from ...models import DecoderOnly, EncoderDecoder
from ...models.sound import spectrum
from ...nn import PatchEmbedding, SpectrumEmbedding
from ...pretrained import Pretrained
from ...tensors.shapes import wrong
from ...text import Text, Tokens
from .base import Run, Source, Subject, shown_name
from .patches import Patches
from .sound import FRAME_SECONDS, alignment_heads_in, heard, states_of
from .texts import MAX_WRITTEN, after, text_of, unknown_token


class PretrainedSubject(Subject):
    """A `limelight.Pretrained`, of which there is one for each of our model families.

    Args:
        model: what `limelight.load` returns.

    Raises:
        ArgumentError: the checkpoint has no tokenizer.
    """

    def __init__(self, model: Pretrained) -> None:
        network, config = model.network, model.config
        self.model = model
        self.name = shown_name(model.name)
        self.layers, self.heads = config.layers, config.query_heads
        self.attention_names = tuple(name for name in network.attention_names if name in self._layers())
        self.blocks = config.layers
        self.limit, self.vocabulary = config.limit, config.vocabulary
        self.trained_positions, self.extrapolates = config.limit, not network.learned_positions
        self.kind = "decoder" if isinstance(network, DecoderOnly) else "encoder"
        if isinstance(network.embedding, PatchEmbedding):
            self.patches = _patches(network.embedding)
            self.grid = self.patches.grid
        if isinstance(network, EncoderDecoder):
            self.kind = "encoder-decoder"
            self.encoder_names, self.cross_names = network.encoder.attention_names, network.cross_names
            self.encoder_heads = network.encoder.config.query_heads
            self.hears = isinstance(network.encoder.embedding, SpectrumEmbedding)
            self.alignment_heads = alignment_heads_in(model.source, self.layers, self.heads)

    def read(self, given: Any, name: str = "text", *, extrapolate: bool = False) -> tuple[Text, Tensor]:
        if self.patches is None:
            return super().read(given, name, extrapolate=extrapolate)
        return self.patches.text, self.patches.numbers(given, name=name)

    def tokenize(self, text: str) -> Text:
        if self.patches is not None:
            raise wrong("model", "must read text", f"{self.name} reads pictures", "limelight.look takes a picture.")
        return self.model.read(text).texts[0]

    def run(
        self,
        ids: Tensor,
        *,
        lengths: Tensor | None = None,
        source: Tensor | None = None,
        hidden: bool = False,
        logits: bool = False,
    ) -> Run:
        ids = ids.to(self.model.device, self.model.dtype if ids.is_floating_point() else None)
        layout = None if lengths is None else Padded(lengths)
        with torch.inference_mode():
            if source is None:
                extrapolate = self.extrapolates  # `read` has checked the length
                output = self.model.network(ids, layout=layout, hidden=hidden, logits=logits, extrapolate=extrapolate)
                return Run(output.hidden or (), output.logits)
            network = self.model.network
            assert isinstance(network, EncoderDecoder)
            source = source.to(self.model.device, self.model.dtype if source.is_floating_point() else None)
            encoded = network.encode(source, hidden=hidden)
            output = network(ids, source=encoded, layout=layout, hidden=hidden, logits=logits)
            return Run(output.hidden or (), output.logits, encoded.hidden or ())

    def read_source(self, source: Any) -> Source:
        if self.hears:
            samples = heard(source)
            return Source(spectrum(samples), None, states_of(samples), FRAME_SECONDS)
        text = self.tokenize(source)
        network = self.model.network
        self.check_fit("text", len(text), network.encoder.config.limit if isinstance(network, EncoderDecoder) else None)
        return Source(torch.tensor([text.ids], dtype=torch.int64, device="cpu"), text, len(text))

    def read_target(self, text: str) -> Text:
        begin = decoder_beginning(self.model)
        read = self.model.tokenizer.read(text, add_special_tokens=False)
        self.check_fit("target", len(begin) + len(read), self.limit)
        return after(begin, [self._spelled(number) for number in begin], read)

    def write(self, source: Source) -> Text:
        begin = decoder_beginning(self.model)
        prompt: Any = source.input if source.text is None else Tokens((source.text,), source.input, None)
        most = MAX_WRITTEN if self.limit is None else min(MAX_WRITTEN, self.limit - len(begin))
        written = self.model.generate(prompt, tokens=most)[0]
        ids = written.ids[:-1] if written.ended == "token" else written.ids
        special = [self.model.tokenizer.special_token(number) is not None for number in ids]
        read = text_of(ids, [self._spelled(number) for number in ids], special, self.model.tokenizer.write)
        return after(begin, [self._spelled(number) for number in begin], read)

    def _spelled(self, number: int) -> str:
        """How a token is written in the vocabulary; Marian's start token is in none."""
        return self.model.tokenizer.backend.id_to_token(number) or "[start]"

    def follow(self, ids: Tensor, visit: Callable[[int, Tensor], None]) -> None:
        network = self.model.network

        def before(depth: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
            return lambda _, given: visit(depth, given[0])

        ids = ids.to(self.model.device, self.model.dtype if ids.is_floating_point() else None)
        hooks = [layer.register_forward_pre_hook(before(depth)) for depth, layer in enumerate(network.layers)]
        try:
            with torch.inference_mode():
                visit(self.layers, network(ids, logits=False, extrapolate=self.extrapolates).states)
        finally:
            for hook in hooks:
                hook.remove()

    def lens(self, states: Tensor, depth: int) -> Tensor | None:
        network = self.model.network
        if network.head is None:
            return None
        with torch.inference_mode():
            if depth < self.layers and network.norm is not None:
                states = network.norm(states)
            return network.head_on(states)

    def embeddings(self) -> Tensor:
        table = getattr(getattr(self.model.network.embedding, "tokens", None), "weight", None)
        if not isinstance(table, Tensor):
            raise wrong("model", "must have a table of token embeddings", f"{self.name} has none", "Use another model.")
        return table.detach()

    def output_weight(self, name: str) -> Tensor:
        layer: Any = self._layers()[name]
        weight: Tensor = layer.output.weight.detach()  # (width, H * Dv)
        return weight.T.reshape(-1, layer.value_width, weight.shape[0]).float()

    @property
    def unknown_token(self) -> str | None:
        return None if self.patches is not None else unknown_token(self.model.tokenizer)

    def spell(self, token: int) -> str:
        return self.model.tokenizer.backend.id_to_token(token) or f"<{token}>"

    def decode(self, ids: Sequence[int]) -> str:
        return self.model.tokenizer.write(ids)

    def is_special(self, token: int) -> bool:
        return self.model.tokenizer.special_token(token) is not None

    def generate(self, ids: Sequence[int], tokens: int, sampler: Sampler, seed: int) -> tuple[int, ...]:
        return self.model.generate(list(ids), sampler, tokens=tokens, seed=seed)[0].ids

    def _layers(self) -> dict[str, nn.Module]:
        """The attention layers by the name under which they are observed."""
        found = {}
        for module in self.model.network.modules():
            name = getattr(module, "name", None)
            if isinstance(name, str):
                found[name] = module
        return found


def _patches(embedding: PatchEmbedding) -> Patches:
    """How our embedding of pictures cuts them."""
    side, across = embedding.patches.kernel_size
    if side != across:
        got = f"its patches have {side} x {across} pixels"
        raise wrong("model", "must read pictures in square patches", got, "Take another model.")
    return Patches(embedding.channels, *embedding.size, side)
