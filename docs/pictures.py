"""The pictures of the handbook, each drawn from the names that the examples of its page leave behind.

python docs/pictures.py              # all
python docs/pictures.py masking      # those of one page
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figures import BLUE, COLOURS, FAINT, GRID, INK, ORANGE, Figure, Plot, heat
from pages import run

HERE = Path(__file__).resolve().parent
Names = dict[str, Any]
PICTURES: dict[str, dict[str, Callable[[Names], str]]] = {}


def of(page: str, name: str) -> Callable[[Callable[[Names], Figure]], Callable[[Names], str]]:
    """Says that a function draws ``pictures/NAME.svg`` from what is left of the examples of a page."""

    def put(draw: Callable[[Names], Figure]) -> Callable[[Names], str]:
        PICTURES.setdefault(page, {})[name] = lambda names: draw(names).svg()
        return PICTURES[page][name]

    return put


@of("self-attention", "four-steps")
def four_steps(names: Names) -> Figure:
    """Scores and weights of six tokens, with their numbers."""
    figure = Figure(640, 300, "The scores of six tokens, and the weights that a softmax makes of them")
    tokens = [str(n) for n in range(6)]
    for x, what, words, numbers in (
        (60, "scores", "2: scores, q · k / √D", names["scores"]),
        (380, "weights", "3: weights, each row sums to 1", names["weights"]),
    ):
        figure.text(x, 30, words, size=13)
        heat(figure, x, 70, numbers.tolist(), cell=34, rows=tokens, columns=tokens, digits=2)
        figure.text(x - 32, 174, "query", FAINT, 11, "middle", turn=-90)
        below = "key (blue: above 0, orange: below)" if what == "scores" else "key"
        figure.text(x + 102, 292, below, FAINT, 11, "middle")
    return figure


@of("self-attention", "cost")
def cost_by_length(names: Names) -> Figure:
    """Operations of each kind of step by the length."""
    lengths, cost, network = names["lengths"], names["cost"], names["network"]
    figure = Figure(640, 330, "Operations of the steps of SmolLM2-135M by the length of the text")
    plot = Plot(figure, (60, 60, 430, 220), (lengths[0], lengths[-1]), (1e-2, 1e4), logarithmic=(True, True))
    plot.axes(
        {n: f"{n:,}" for n in lengths[::2]},
        {10.0**n: f"{10**n:,}" if n >= 0 else str(10.0**n) for n in range(-2, 5)},
        below="tokens",
        above="GFLOP",
        title="SmolLM2-135M, causal",
    )
    found = [cost(network, length) for length in lengths]
    kinds = {
        "all": ("projections", "scores", "softmax", "values", "feed-forward", "head"),
        "scores + values": ("scores", "values"),
        "feed-forward": ("feed-forward",),
        "projections": ("projections",),
        "softmax": ("softmax",),
    }
    for colour, (name, parts) in zip((INK, *COLOURS), kinds.items(), strict=False):
        points = [(n, sum(one.part(part).flop for part in parts) / 1e9) for n, one in zip(lengths, found, strict=True)]
        plot.curve(points, colour, name)
    return figure


@of("masking", "patterns")
def patterns(names: Names) -> Figure:
    """Six patterns, each drawn by itself."""
    from limelight import Causal, Packed, Window

    shown = (
        (Causal(), None, "Causal()"),
        (Causal() & Window(3, 0), None, "Causal() & Window(3, 0)"),
        (names["streaming"], None, "streaming"),
        (names["language"], None, "language"),
        (names["apart"], None, "apart"),
        (Causal(), Packed((4, 7, 5)), "Causal(), Packed((4, 7, 5))"),
    )
    figure = Figure(640, 480, "Six patterns over sixteen tokens: queries go down, keys go right")
    for number, (pattern, layout, words) in enumerate(shown):
        x, y = 24 + 204 * (number % 3), 44 + 224 * (number // 3)
        figure.text(x, y - 10, words, size=12)
        figure.picture(x, y, pattern.draw(16, layout=layout).svg(cell=11))
    figure.text(24, 466, "queries go down, keys go right", FAINT, 11)
    return figure


@of("flash-attention", "tiles")
def tiles(names: Names) -> Figure:
    """Which tiles are skipped, taken whole, and cut by an edge."""
    from limelight import Causal, Window
    from limelight.lowering import lower

    figure = Figure(640, 350, "Tiles of a causal pattern and of a window: skipped, taken whole, cut by an edge")
    side, count, cell = 128, 16, 15
    for x, pattern, words in (
        (24, Causal(), "Causal()"),
        (340, Causal() & Window(511, 0), "Causal() & Window(511, 0)"),
    ):
        pairs = lower(pattern, None, 1, 1, side * count, side * count).block_pairs(side, side)[0, 0]
        figure.text(x, 34, words)
        for i in range(count):
            for j in range(count):
                whole = pairs[i, j] == side * side
                colour, opacity = (BLUE, 0.75) if whole else (ORANGE, 0.75) if pairs[i, j] else ("#ffffff", 1)
                figure.rectangle(x + j * cell, 44 + i * cell, cell, cell, colour, opacity, GRID)
    for x, colour, words in (
        (24, BLUE, "taken whole"),
        (140, ORANGE, "cut by an edge: pairs are compared"),
        (400, "#ffffff", "never visited"),
    ):
        figure.rectangle(x, 304, 12, 12, colour, 0.75, GRID)
        figure.text(x + 18, 314, words)
    figure.text(24, 336, "2,048 queries by 2,048 keys, in tiles of 128 by 128", FAINT, 11)
    return figure


def main(*wanted: str) -> None:
    """Run pages and write their pictures."""
    pages = [(HERE / f"{page}.md", PICTURES[page]) for page in wanted or PICTURES]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for page, pictures in pages:
            names = run(page)
            for name, draw in pictures.items():
                (HERE / "pictures" / f"{name}.svg").write_text(draw(names), "utf-8")
                print(f"{page.name}: {name}.svg")


if __name__ == "__main__":
    main(*sys.argv[1:])
