"""The strongest weights of every head, with the text around them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from ...subjects import Subject
from ..measure import Measure, Part, Request, Result
from ..sample import Sample
from ..sums import Numbers, State
from .positions import strongest

KEPT = 8
AROUND = 12  # tokens on either side
GAP = " … "


class Examples(Measure):
    """Keeps the strongest weights of each head, the sinks left out: of every text the strongest, of those the best 8.

    Of equal weights the first in the corpus is kept.
    """

    name = "examples"
    controlled = False

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.weights: Numbers = np.zeros((subject.layers, subject.heads, KEPT))
        self.places = np.full((subject.layers, subject.heads, KEPT, 3), -1, np.int64)  # text, query, key
        self.windows: dict[tuple[int, int, int], dict[str, Any]] = {}

    def request(self, sample: Sample) -> Request | None:
        return Request(top=len(sample.sinks) + 1) if len(sample.queries) else None

    def add(self, sample: Sample, layer: int, seen: Part) -> None:
        weights, keys = strongest(sample, seen)
        at = sample.queries[weights[:, sample.queries].argmax(1)]  # (H,)
        best = weights.gather(1, at[:, None])[:, 0].double().numpy()
        found = keys.gather(1, at[:, None])[:, 0].numpy()
        for head in np.flatnonzero((best > self.weights[layer, :, -1]) & (found >= 0)):
            row, places = self.weights[layer, head], self.places[layer, head]
            where = int(np.searchsorted(-row, -best[head], side="right"))
            row[where + 1 :], places[where + 1 :] = row[where:-1].copy(), places[where:-1].copy()
            row[where], places[where] = best[head], (sample.number, int(at[head]), int(found[head]))
            place = (sample.number, int(at[head]), int(found[head]))
            if place not in self.windows:
                self.windows[place] = window(sample, place[1], place[2])

    def finish(self, sample: Sample, run: object) -> None:
        """Forget the windows that no head keeps."""
        kept = {(int(text), int(query), int(key)) for text, query, key in self.places.reshape(-1, 3)}
        self.windows = {place: each for place, each in self.windows.items() if place in kept}

    def results(self) -> list[Result]:
        return []

    def rows(self) -> list[dict[str, Any]]:
        """The examples of all heads, each the strongest first.

        Keys: ``layer``, ``head``, ``weight``, ``text`` (number), ``offset`` (key - query), ``tokens`` (strings as
        written in the text), ``query`` and ``key`` (indices in ``tokens``), and ``gap`` (the index of ``" … "`` for
        what was left out between them, or ``None``).
        """
        rows = []
        for layer, head, rank in np.argwhere(self.places[..., 0] >= 0).tolist():
            text, query, key = self.places[layer, head, rank].tolist()
            weight = float(f"{self.weights[layer, head, rank]:.4g}")
            rows.append({"layer": layer, "head": head, "weight": weight, **self.windows[text, query, key]})
        return rows

    def state(self) -> State:
        text = json.dumps([[*place, each] for place, each in self.windows.items()])
        windows = np.frombuffer(text.encode("utf-8"), np.uint8)
        return {"weights": self.weights, "places": self.places, "windows": windows}

    def restore(self, state: State) -> None:
        self.weights[...], self.places[...] = state["weights"], state["places"]
        rows = json.loads(state["windows"].tobytes().decode("utf-8"))
        self.windows = {(text, query, key): each for text, query, key, each in rows}


def window(sample: Sample, query: int, key: int) -> dict[str, Any]:
    """The tokens around a query and its key, as they are written, with a gap where they lie far apart."""
    first, last = min(query, key), max(query, key)
    end = len(sample)
    near = range(max(0, first - AROUND), min(end, first + AROUND + 1))
    far = range(max(0, last - AROUND), min(end, last + AROUND + 1))
    gap = None if far.start <= near.stop else len(near)
    shown = [*near, *far] if gap is not None else list(range(near.start, far.stop))
    tokens = [written(sample, i) for i in shown]
    index = {i: place for place, i in enumerate(shown)}
    if gap is not None:
        tokens.insert(gap, GAP)
        index = {i: place + (place >= gap) for i, place in index.items()}
    return {
        "text": sample.number,
        "offset": key - query,
        "tokens": tokens,
        "query": index[query],
        "key": index[key],
        "gap": gap,
    }


def written(sample: Sample, i: int) -> str:
    """A token as it stands in the text, with the blanks before it; a special token by its name."""
    start, end = sample.text.spans[i]
    if end <= start:
        return sample.text.tokens[i]
    before = next((sample.text.spans[j][1] for j in range(i - 1, -1, -1) if sample.text.spans[j][1]), 0)
    return sample.text.text[min(before, start) : end]
