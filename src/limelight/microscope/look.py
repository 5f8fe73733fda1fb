"""Run a model over a text under observation: a run gives a `Reading`, one or two of them a `Report`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.load import load
from ..formats.progress import counted
from ..forms.observations import Observations, Observe, Seen, watching
from ..models import DecoderOnly
from ..pretrained import Pretrained
from ..tensors.shapes import wrong
from ..text import Text
from .comparison import Comparison, compare_readings, words_that_changed
from .reading import Floats, HeadStatistics, Reading, find_sinks, number_units
from .relations import words_that_matter
from .report import ModelFacts, Report
from .words import join_words, unknown_token

EXACT_WEIGHTS = 1_200_000  # a text whose weights, over all layers and heads, are no more than this is kept exactly
BLOCKS = 64  # otherwise a heat map has this many blocks along a side,
STRONGEST = 8  # and every query's strongest keys are kept

NAMED = "named by the user"
MOVED = "content words whose vector moves most between the embedding and the last layer"
RECEIVED = "content words that receive most attention beyond an even spread"
CHANGED = "words of both texts whose cosine falls most below that of their embeddings, content words first"


def look(
    model: str | Pretrained,
    text: str,
    *,
    compare: str | None = None,
    words: Sequence[str] = (),
    special: bool = False,
) -> Report:
    """Run a model over a text and report what each token looked at.

    Memory grows with the length of the text: a long one is observed as blocks and strongest keys.

    Args:
        model: a model, or a name or path for `limelight.load`.
        text: the text.
        compare: a second text, run by itself and compared with the first word by word.
        words: the words to report on, in either text and any case; by default the most prominent ones.
        special: include special tokens, sinks, punctuation and the word itself in relations.

    Raises:
        ArgumentError: a text is empty or longer than the model's positions, a word is in no text, or the model has an
            encoder and a decoder.

    Example:
        >>> report = look("minilm", "The bank is near the river.", words=["bank"])
        >>> report
        Report('minilm', 'The bank is near the river.', words='bank')
        >>> first = report.tables["relations"][0]
        >>> first["direction"], first["other"], round(first["weight"], 2), (first["layer"], first["head"])
        ('looks at', 'river', 0.64, (0, 4))
    """
    if isinstance(words, str):
        raise wrong("words", "must be a list of words", f"it is {words!r}", f"Write words=[{words!r}].")
    pretrained = _loaded(model)
    if pretrained.config.encoder is not None:
        raise wrong(
            "model",
            "must be an encoder or a decoder",
            f"{pretrained!r} has an encoder and a decoder",
            "limelight.watching observes each of its layers: `network.attention_names`, `network.cross_names`.",
        )
    texts = [text] if compare is None else [text, compare]
    readings = tuple(_read(pretrained, text, keep_vectors=compare is not None) for text in texts)
    comparison = compare_readings(*readings) if len(readings) == 2 else None
    chosen, chosen_by = _choose(readings, comparison, words)
    config = pretrained.config
    kind = "decoder" if readings[0].causal else "encoder"
    facts = ModelFacts(pretrained.name, kind, config.layers, config.query_heads)
    return Report(facts, readings, chosen, chosen_by, comparison, special)


def _loaded(model: str | Pretrained) -> Pretrained:
    if isinstance(model, Pretrained):
        return model
    if isinstance(model, torch.nn.Module):
        raise wrong(
            "model",
            "must be a name, a folder, a .gguf file or what limelight.load returns",
            f"it is a {type(model).__name__} of {type(model).__module__.partition('.')[0]}",
            "For a model of transformers, model.save_pretrained(folder) and tokenizer.save_pretrained(folder) write a "
            "folder that look reads; limelight.integrations.transformers observes it where it is.",
        )
    return load(model)


def _choose(
    readings: Sequence[Reading], comparison: Comparison | None, names: Sequence[str]
) -> tuple[tuple[tuple[int, ...], ...], str]:
    """Choose the words to report on for each text; return also the measure, in words."""
    if names:
        for name in names:
            if not any(reading.find(name) for reading in readings):
                known = list(
                    dict.fromkeys(w.text for reading in readings for w in reading.words if not w.is_punctuation)
                )
                some = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise wrong("word", "must be in the text", f"{name!r} is not", f"The words are: {some}.")
        found = (dict.fromkeys(number for name in names for number in reading.find(name)) for reading in readings)
        return tuple(tuple(numbers) for numbers in found), NAMED
    if comparison is not None and comparison.pairs:
        pairs = [comparison.pairs[number] for number in words_that_changed(comparison, readings[0])]
        return tuple(tuple(pair[side] for pair in pairs) for side in (0, 1)), CHANGED
    chosen = tuple(tuple(words_that_matter(reading)) for reading in readings)
    return chosen, RECEIVED if readings[0].causal else MOVED


def _read(model: Pretrained, text: str, keep_vectors: bool) -> Reading:
    """Run the model once over one text, and return its observations."""
    if not isinstance(text, str) or not text.strip():
        raise wrong(
            "text", "must hold at least one word", f"it is {text!r}", 'For example: "The bank is near the river."'
        )
    tokens = model.read(text)
    written = tokens.texts[0]
    length = len(written)
    causal = isinstance(model.network, DecoderOnly)
    config = model.config
    exact = length <= BLOCKS or config.layers * config.query_heads * length**2 <= EXACT_WEIGHTS
    watch = _Watch(written, causal, exact, config.layers)
    with (
        counted(f"Reading {length:,} tokens", config.layers) as watch.progress,
        watching(watch),
        torch.inference_mode(),
    ):
        hidden = model(tokens, hidden=True, logits=False).hidden
    assert hidden is not None
    return watch.reading(hidden, keep_vectors, unknown_token(model.tokenizer))


class _Watch(Seen):
    """Receives each layer's observations and keeps what a `Reading` needs of them."""

    def __init__(self, text: Text, causal: bool, exact: bool, layers: int) -> None:
        self.text, self.causal = text, causal
        self.length = len(text)
        self.block = 1 if exact else -(-self.length // BLOCKS)
        self.special = tuple(i for i, special in enumerate(text.special) if special)
        self.candidates = tuple(dict.fromkeys((*((0,) if causal else ()), *self.special)))
        self.columns = _columns(self.candidates, self.causal, self.block)
        self.progress: Callable[[int], None] = lambda done: None
        self.parts: dict[str, list[np.ndarray[Any, Any]]] = {}
        self.done, self.of = 0, layers
        super().__init__(self._observe(exact))

    def _observe(self, exact: bool) -> Observe:
        common: dict[str, Any] = dict.fromkeys(("entropy", "max_weight", "distance", "received"), True)
        common["blocks"] = (self.block, self.block)
        if exact:
            return Observe(**common)
        at = torch.arange(self.length, device="cpu")
        neighbours = (at, (at - 1).clamp(min=0)), (at, at), (at, (at + 1).clamp(max=self.length - 1))
        pairs = torch.cat([torch.stack(pair, 1) for pair in neighbours])  # (3 L, 2)
        features = torch.zeros(self.length, max(1, len(self.columns)), dtype=torch.float32, device="cpu")
        for column, members in enumerate(self.columns.values()):
            features[list(members), column] = 1.0
        return Observe(**common, top=STRONGEST, pairs=pairs, features=features)

    def add(self, name: str | None, observations: Observations) -> None:
        """Keep the statistics of one layer, and drop its other observations."""
        seen = {
            key: tensor[0].detach().float() for key, tensor in observations.seen().items() if tensor.is_floating_point()
        }
        for key in ("entropy", "max_weight", "distance"):
            self._keep(key, seen[key].mean(-1))
        self._keep("received", seen["received"].mean(0))
        self._keep("received_first", seen["received"][:, 0])  # (H,)
        rows = torch.full((seen["blocks"].shape[-2],), float(self.block), dtype=torch.float32, device="cpu")
        rows[-1] = self.length - self.block * (len(rows) - 1)
        self._keep("shares", seen["blocks"] / rows.to(seen["blocks"])[:, None])
        if self.block > 1:
            self._keep("neighbours", seen["pairs"].reshape(-1, 3, self.length))  # (H, 3, L)
            self._keep("features", _by_block(seen["features"], self.block))  # (H, T, F)
            self._keep("top_weights", seen["top_weights"])
            assert observations.top_keys is not None
            self._keep("top_keys", observations.top_keys[0].to(torch.int32))
        self.done += 1
        self.progress(self.done)

    def _keep(self, key: str, tensor: Tensor) -> None:
        self.parts.setdefault(key, []).append(tensor.cpu().numpy())

    def reading(self, hidden: Sequence[Tensor], keep_vectors: bool, unknown: str | None) -> Reading:
        """Everything together, after the run."""
        parts = {key: np.stack(values) for key, values in self.parts.items()}
        text, length = self.text, self.length
        tokens, words = join_words(text.text, text.tokens, text.spans, text.special)
        shares = parts["shares"]
        exact = self.block == 1
        sinks = find_sinks(parts["received_first"], self.causal, length)
        apart = tuple(sorted({*sinks, *self.special}))
        apart_shares = self._apart_shares(parts, shares, apart)
        neighbours = _diagonals(shares) if exact else parts["neighbours"]  # (N, H, 3, L)
        beside = max(1, length - 1)
        statistics = HeadStatistics(
            entropy=parts["entropy"],
            strongest=parts["max_weight"],
            distance=parts["distance"],
            previous=neighbours[:, :, 0, 1:].sum(-1) / beside,
            own=neighbours[:, :, 1].mean(-1),
            next=neighbours[:, :, 2, :-1].sum(-1) / beside,
            apart=_mean_rows(apart_shares.sum(-1), self.block, length),
        )
        none = (*shares.shape[:2], length, 0)
        units = torch.from_numpy(number_units(tokens, words)).long()
        path, steps, vectors = _paths(hidden, units, keep_vectors)
        return Reading(
            text=text.text,
            tokens=tokens,
            words=words,
            causal=self.causal,
            block=self.block,
            shares=shares,
            apart=apart,
            apart_shares=apart_shares,
            top_weights=parts.get("top_weights", np.zeros(none, np.float32)),
            top_keys=parts.get("top_keys", np.zeros(none, np.int32)),
            heads=statistics,
            received=parts["received"],
            path=path,
            steps=steps,
            vectors=vectors,
            unknown=tuple(place for place, token in enumerate(text.tokens) if token == unknown),
        )

    def _apart_shares(self, parts: dict[str, Any], shares: Floats, apart: tuple[int, ...]) -> Floats:
        """The part of every cell of the heat maps that falls on tokens set apart."""
        only = np.zeros_like(shares)
        if self.block == 1:
            only[..., list(apart)] = shares[..., list(apart)]
            return only
        for column, (block, members) in enumerate(self.columns.items()):
            if members[0] in apart:
                only[..., max(block, 0)] += parts["features"][..., column]
        return only


def _columns(candidates: tuple[int, ...], causal: bool, block: int) -> dict[int, tuple[int, ...]]:
    """Tokens that may be set apart, by block of keys; the first token of a causal model by itself, as block -1."""
    columns: dict[int, tuple[int, ...]] = {}
    for position in candidates:
        number = -1 if causal and position == 0 else position // block
        columns[number] = (*columns.get(number, ()), position)
    return columns


def _by_block(rows: Tensor, block: int) -> Tensor:
    """Mean over each block of queries: ``(H, L, F)`` to ``(H, T, F)``."""
    return torch.stack([part.mean(1) for part in torch.split(rows, block, dim=1)], 1)


def _mean_rows(by_block: Floats, block: int, length: int) -> Floats:
    """Mean over the queries of what is a mean over each block of them, ``(..., T)``."""
    count = np.full(by_block.shape[-1], block, np.float32)
    count[-1] = length - block * (len(count) - 1)
    return np.asarray((by_block * count).sum(-1) / length, dtype=np.float32)


def _diagonals(weights: Floats) -> Floats:
    """Weights on the previous, own and next token of every query, ``(N, H, 3, L)``; 0 where there is none."""
    rows = np.zeros((*weights.shape[:2], 3, weights.shape[-1]), np.float32)
    rows[:, :, 0, 1:] = weights.diagonal(-1, 2, 3)
    rows[:, :, 1] = weights.diagonal(0, 2, 3)
    rows[:, :, 2, :-1] = weights.diagonal(1, 2, 3)
    return rows


def _paths(hidden: Sequence[Tensor], units: Tensor, keep: bool) -> tuple[Floats, Floats, Floats | None]:
    """Cosine of each unit's vector (the mean of its tokens') with the first one and with the one before, by layer."""
    count = int(units.max()) + 1
    pieces = torch.bincount(units, minlength=count).float()
    path, steps, vectors = [], [], []
    first = last = None
    for states in hidden:
        total = torch.zeros(count, states.shape[-1], dtype=torch.float32, device="cpu")
        vector = total.index_add_(0, units, states[0].float().cpu()) / pieces[:, None]
        normal = torch.nn.functional.normalize(vector, dim=-1)
        first = normal if first is None else first
        path.append((normal * first).sum(-1).numpy())
        steps.append((normal * (normal if last is None else last)).sum(-1).numpy())
        last = normal
        if keep:
            vectors.append(normal.numpy())
    return np.stack(path), np.stack(steps), np.stack(vectors) if keep else None
