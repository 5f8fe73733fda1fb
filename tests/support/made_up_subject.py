"""A subject whose scores are a formula of its tokens, so that every weight is known from the definition."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable

import torch

import limelight
from limelight import Bias, Causal, Full, Window
from limelight.microscope.subjects import Run, Subject
from limelight.text import Text

Scores = Callable[[list[int]], torch.Tensor]  # ids to (layers, heads, L, L)


class MadeUp(Subject):
    """Reads words and punctuation, in encoders between [CLS] and [SEP]; its scores are those of a function.

    Args:
        scores: from token ids to ``(N, H, L, L)``, before the causal pattern.
        causal: whether this is a decoder.
        width: of the hidden states, which are random but for the token.
        window: of the last layer.
    """

    name = "made up"
    unknown_token = None

    def __init__(
        self,
        scores: Scores,
        *,
        causal: bool = True,
        layers: int = 2,
        heads: int = 3,
        width: int = 4,
        window: Window | None = None,
    ) -> None:
        self.scores, self.kind = scores, "decoder" if causal else "encoder"
        pattern = Causal() if causal else Full()
        self.patterns = [pattern] * (layers - 1) + [pattern if window is None else pattern & window]
        self.layers, self.heads, self.width, self.blocks = layers, heads, width, layers
        self.attention_names = tuple(f"layers.{i}.attention" for i in range(layers))
        self.vocabulary, self.limit = 500, 256
        self.runs = 0

    def tokenize(self, text: str) -> Text:
        found = [(m.group(), m.span()) for m in re.finditer(r"\w{1,6}|[^\w\s]|\n+", text)]
        ids = [3 + zlib.crc32(piece.encode()) % (self.vocabulary - 3) for piece, _ in found]
        pieces, spans, special = [p for p, _ in found], [s for _, s in found], [False] * len(found)
        if not self.causal:
            ids, pieces = [0, *ids, 1], ["[CLS]", *pieces, "[SEP]"]
            spans, special = [(0, 0), *spans, (0, 0)], [True, *special, True]
        return Text(text, tuple(ids), tuple(pieces), tuple(spans), (None,) * len(ids), tuple(special))

    def run(self, ids, *, source=None, hidden=False, logits=False):
        self.runs += 1
        scores = self.scores(ids[0].tolist()).float()
        nothing = torch.zeros(1, self.heads, ids.shape[1], self.width)
        for name, layer, pattern in zip(self.attention_names, scores, self.patterns, strict=True):
            limelight.attention(nothing, nothing, nothing, pattern=pattern, scores=[Bias(layer[None])], name=name)
        states = self.embeddings()[ids]
        return Run((states,) * (self.layers + 1) if hidden else ())

    def weights(self, ids: list[int]) -> torch.Tensor:
        """``(N, H, L, L)`` float64, by the definition."""
        scores = self.scores(ids).float().double()
        if self.causal:
            length = len(ids)
            scores = scores.masked_fill(~torch.ones(length, length).tril().bool(), float("-inf"))
        return scores.softmax(-1)

    def lens(self, states, depth):
        return None

    def embeddings(self):
        return torch.randn(self.vocabulary, self.width, generator=torch.Generator().manual_seed(0))

    def output_weight(self, name):
        return torch.zeros(self.heads, self.width, self.width)


def random_scores(layers: int = 2, heads: int = 3, sharpness: float = 2.0) -> Scores:
    """Scores that depend on both tokens and on the distance, without a pattern."""

    def scores(ids: list[int]) -> torch.Tensor:
        generator = torch.Generator().manual_seed(sum(ids) + len(ids))
        return sharpness * torch.randn(layers, heads, len(ids), len(ids), generator=generator)

    return scores


def designed_scores(ids: list[int]) -> torch.Tensor:
    """One layer: previous token, sink, duplicate token, induction, even spread, and a sink that spares little."""
    length = len(ids)
    token, at = torch.tensor(ids), torch.arange(length)
    same = (token[:, None] == token[None]) & (at[:, None] > at[None])
    scores = torch.zeros(1, 6, length, length)
    scores[0, 0, at[1:], at[:-1]] = 8.0
    scores[0, 1, :, 0] = 6.0
    scores[0, 2][same] = 8.0
    scores[0, 3, :, 1:][same[:, :-1]] = 8.0
    scores[0, 5, :, 0] = 12.0
    scores[0, 5, at[1:], at[:-1]] = 6.0
    return scores
