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

from figures import BLUE, COLOURS, FAINT, GREEN, GRID, INK, ORANGE, Figure, Plot, heat
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
    from limelight.forms.lowering import lower

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


@of("heads", "heads")
def jobs_of_heads(names: Names) -> Figure:
    """What every head of a model looks at: one panel for each job."""
    figure = Figure(
        640, 572, "Mean weight that each head of SmolLM2 gives to the previous token, the first, and the follower"
    )
    words = {
        "previous": "previous-token heads: weight on the token before",
        "first": "sinks: weight on the first token",
        "follower": "induction heads: weight on what followed the last time",
    }
    layers = [str(n) if n % 5 == 0 else "" for n in range(30)]
    for number, (job, weights) in enumerate(names["jobs"].items()):
        mean = weights.mean(dim=-1)  # (30, 9)
        y = 54 + 178 * number
        figure.text(60, y - 24, words[job], size=13)
        rows = [str(head) if head % 4 == 0 else "" for head in range(9)]
        heat(figure, 60, y, mean.T.tolist(), cell=15, rows=rows, columns=layers, top=1.0)
        layer, head = divmod(int(mean.argmax()), 9)
        figure.text(520, y + 15 * head + 12, f"{layer}.{head}: {mean.max():.2f}", FAINT, 11)
        figure.text(28, y + 70, "head", FAINT, 11, "middle", turn=-90)
    figure.text(285, 562, "layer", FAINT, 11, "middle")
    return figure


@of("cross-attention", "alignment")
def alignment(names: Names) -> Figure:
    """Weights of one head of cross-attention."""
    source, target, weights = names["source"], names["target"], names["weights"]
    figure = Figure(640, 440, "Cross-attention of a translator: each Portuguese word looks at its English word")
    figure.text(24, 30, "decoder layer 1, head 3 (both counted from 0)", size=13)
    heat(figure, 130, 110, weights[3].tolist(), cell=30, rows=target, columns=source, top=1.0)
    figure.text(24, 265, "written", FAINT, 11, "middle", turn=-90)
    figure.text(480, 130, "darker: more weight", FAINT, 11)
    return figure


@of("comparisons", "scale")
def scale(names: Names) -> Figure:
    """Entropy of the weights by the width."""
    figure = Figure(640, 320, "Entropy of the weights by the width of a head, for three comparisons")
    table = names["table"]
    plot = Plot(figure, (60, 50, 440, 210), (4, 1024), (0, 4.5), logarithmic=(True, False))
    marks = {float(n): str(n) for n in range(5)}
    plot.axes({n: str(n) for n in table}, marks, below="width of a head, D", above="mean entropy in nats, 64 keys")
    plot.curve([(4, 4.1589), (1024, 4.1589)], FAINT, "even: log 64", width=1, dashes="4 4")
    for colour, (number, name) in zip(
        (GREEN, BLUE, ORANGE), ((2, "additive"), (1, "dot / √D"), (0, "dot, no scale")), strict=True
    ):
        plot.curve([(width, row[number]) for width, row in table.items()], colour, name)
    return figure


@of("positions", "stretches")
def stretches(names: Names) -> Figure:
    """What each scaling leaves of the frequencies."""
    figure = Figure(640, 310, "What four scalings leave of the frequency of each pair of a rotary head")
    plot = Plot(figure, (60, 50, 450, 200), (0, 31), (0, 1.05))
    plot.axes(
        {0: "0, fastest", 10: "10", 20: "20", 31: "31, slowest"},
        {0: "0", 0.25: "1/4", 0.5: "1/2", 1: "1"},
        below="pair of a head of width 64",
        above="frequency, times the plain one; four times the trained length",
    )
    for colour, (name, share) in zip(COLOURS, names["kept"].items(), strict=False):
        plot.curve(list(enumerate(share.tolist())), colour, name)
    return figure


@of("positions", "positions")
def positions(names: Names) -> Figure:
    """Sinusoids, and biases of the distance."""
    figure = Figure(640, 330, "Sinusoidal positions, and the biases of ALiBi and of T5 by the distance")
    figure.text(40, 30, "sinusoids (blue: above 0, orange: below)", size=13)
    heat(figure, 56, 52, names["waves"][:24, 0:48:2].tolist(), cell=9.5, top=1.0)
    figure.text(170, 296, "number of the vector", FAINT, 11, "middle")
    figure.text(44, 166, "position", FAINT, 11, "middle", turn=-90)

    import torch

    plot = Plot(figure, (370, 70, 190, 90), (-64, 0), (-32, 0))
    plot.axes({-64: "-64", 0: "0"}, {-32: "-32", 0: "0"}, title="ALiBi: one slope a head", above="added to the score")
    for head, slope in enumerate(names["slopes"].slopes.tolist()):
        low = max(-64.0, -32 / slope)
        plot.curve([(low, low * slope), (0, 0)], BLUE, width=1.0 if head else 2.0)
    plot = Plot(figure, (370, 226, 190, 60), (-160, 160), (0, 31))
    plot.axes({-160: "-160", 0: "0", 160: "160"}, {0: "0", 31: "31"}, title="T5: number of the bucket")
    distances = torch.arange(-160, 161)
    plot.curve(list(zip(distances.tolist(), names["buckets"](distances).tolist(), strict=True)), ORANGE, width=1.5)
    figure.text(465, 320, "position of the key minus that of the query", FAINT, 11, "middle")
    return figure


@of("feed-forward", "activations")
def activations(names: Names) -> Figure:
    """Four activations."""
    figure = Figure(640, 320, "The activations ReLU, GELU, SiLU and squared ReLU")
    plot = Plot(figure, (60, 40, 430, 230), (-3, 3), (-0.5, 3.5))
    plot.axes({n: str(n) for n in range(-3, 4)}, {n: str(n) for n in range(4)}, below="x")
    for colour, (name, ys) in zip(COLOURS, names["curves"].items(), strict=False):
        points = [point for point in zip(names["xs"].tolist(), ys.tolist(), strict=True) if point[1] <= 3.5]
        plot.curve(points, colour, name)
    return figure


@of("norms-and-residuals", "norms")
def norms(names: Names) -> Figure:
    """Size of the stream and of a gradient by the depth."""
    figure = Figure(640, 310, "Size of the residual stream, and of the last layer's gradient, by the depth")
    depths = names["depths"]
    for x, which, title, marks in (
        (50, 0, "size of the stream", (1, 2, 4, 8)),
        (370, 1, "gradient of the last layer", (0.5, 1, 2)),
    ):
        plot = Plot(figure, (x, 60, 190, 190), (6, 48), (marks[0] * 0.9, marks[-1] * 1.5), logarithmic=(True, True))
        plot.axes({n: str(n) for n in depths}, {n: str(n) for n in marks}, below="layers", title=title)
        for colour, (name, pairs) in zip(COLOURS, names["found"].items(), strict=False):
            plot.curve([(n, pair[which]) for n, pair in zip(depths, pairs, strict=True)], colour, name)
    return figure


@of("mixture-of-experts", "experts")
def experts(names: Names) -> Figure:
    """Tokens of each expert, without and with the balance loss."""
    figure = Figure(640, 280, "Tokens that each of eight experts gets, without and with a balance loss")
    for x, (pull, counts), words in zip(
        (60, 360), names["counts"].items(), ("without a balance loss", "with it, times 0.1"), strict=True
    ):
        plot = Plot(figure, (x, 60, 240, 160), (-0.6, 7.6), (0, 160))
        plot.axes({n: str(n) for n in range(8)}, {0: "0", 32: "32", 80: "80", 160: "160"}, below="expert", title=words)
        for expert, count in enumerate(counts):
            plot.bar(expert, count, 20, ORANGE if pull == 0 else BLUE)
    figure.text(320, 272, "tokens of the last step, of 256; an even share is 32", FAINT, 11, "middle")
    return figure


@of("mixture-of-heads", "mixture-of-heads")
def heads_of_tokens(names: Names) -> Figure:
    """Weights of the heads that work for each token."""
    figure = Figure(660, 260, "Weights of the heads that work for each of 24 tokens: two shared, two of six chosen")
    gates = names["gates"][0].T.tolist()
    figure.text(110, 34, "weight of each head for each token; white: not computed", size=13)
    for first, rows, colour in ((0, gates[:2], GREEN), (2, gates[2:], BLUE)):
        names_of_rows = [f"head {first + row}" for row in range(len(rows))]
        heat(figure, 110, 60 + 20 * first, rows, cell=20, rows=names_of_rows, top=2.0, colour=colour)
    figure.text(598, 84, "shared", GREEN, 11)
    figure.text(598, 164, "chosen", BLUE, 11)
    figure.text(350, 240, "token", FAINT, 11, "middle")
    return figure


@of("observations", "observations")
def observations(names: Names) -> Figure:
    """Heat maps of three heads, and the entropy of all."""
    figure = Figure(700, 500, "Heat maps of three heads of SmolLM2 over 491 tokens, and the entropy of all its heads")
    for x, layer, head, words in (
        (24, 16, 0, "16.0: the token before"),
        (250, 18, 6, "18.6: what followed the last time"),
        (476, 0, 6, "0.6: the broadest"),
    ):
        blocks = names["seen"][f"layers.{layer}.attention"].blocks[0, head]
        figure.text(x, 30, words, size=12)
        shares = (blocks / blocks.sum(dim=-1, keepdim=True)).sqrt()  # roots, for the faint ones to be seen
        heat(figure, x, 42, shares.tolist(), cell=200 / len(shares), top=1.0)
    figure.text(
        24,
        262,
        "491 tokens, in blocks of 16 by 16; the root of the share of the attention of a block of queries",
        FAINT,
        11,
    )
    figure.text(60, 308, "mean entropy of each head, darker: broader, up to 5 nats", size=13)
    rows, columns = [str(n) for n in range(9)], [str(n) if n % 5 == 0 else "" for n in range(30)]
    heat(figure, 60, 336, names["entropy"].T.tolist(), cell=16, rows=rows, columns=columns, top=5.0, colour=GREEN)
    figure.text(28, 410, "head", FAINT, 11, "middle", turn=-90)
    figure.text(300, 496, "layer", FAINT, 11, "middle")
    return figure


@of("meaning", "bank")
def bank(names: Names) -> Figure:
    """Weights of head 0.4."""
    figure = Figure(640, 420, "Weights of layer 0, head 4 over a sentence: bank looks at river")
    figure.text(24, 30, "minilm, layer 0, head 4", size=13)
    tokens = names["tokens"]
    heat(figure, 110, 90, names["weights"].tolist(), cell=34, rows=tokens, columns=tokens, digits=2, top=1.0)
    figure.text(24, 245, "looks at …", FAINT, 11, "middle", turn=-90)
    figure.line([(110, 158), (416, 158), (416, 192), (110, 192), (110, 158)], ORANGE, 2)
    figure.text(424, 180, "bank", ORANGE)
    return figure


@of("meaning", "path")
def path(names: Names) -> Figure:
    """Cosines by layer: two sentences, and six."""
    figure = Figure(700, 320, "Cosine of the vectors of bank in several sentences by the layers passed")
    marks = {n: str(n) for n in range(7)}
    plot = Plot(figure, (50, 60, 180, 190), (0, 6), (0, 1))
    plot.axes(marks, {0: "0", 0.5: "0.5", 1: "1"}, below="layers passed", above="cosine", title="two sentences")
    contexts = names["contexts"]
    plot.curve([(row["depth"], row["cosine"]) for row in contexts], BLUE, "bank, bank")
    plot.curve([(row["depth"], row["different_words"]) for row in contexts], FAINT, "different words")
    plot = Plot(figure, (400, 60, 190, 190), (0, 6), (0.78, 1))
    plot.axes(marks, {0.8: "0.8", 0.9: "0.9", 1: "1"}, below="layers passed", above="cosine", title="six sentences")
    plot.curve(list(enumerate(names["same"].tolist())), BLUE, "the same sense")
    plot.curve(list(enumerate(names["other"].tolist())), ORANGE, "another sense")
    return figure


@of("generation", "generation")
def generation(names: Names) -> Figure:
    """Keys in a cache, and the likely next tokens under four samplers."""
    figure = Figure(
        700, 340, "Keys that a new token looks at in a cache, and the ten likeliest next tokens under samplers"
    )
    plot = Plot(figure, (50, 60, 200, 200), (0, 200), (0, 200))
    plot.axes({0: "0", 100: "100", 200: "200"}, {0: "0", 64: "64", 200: "200"}, below="tokens read", title="keys kept")
    plot.curve(list(enumerate(names["everything"], 1)), BLUE, "Causal()", width=1.5)
    plot.curve(list(enumerate(names["recent"], 1)), ORANGE, "a window of 32", width=1.5)
    changed, model = names["changed"], names["model"]
    best = changed["as it is"].topk(10).indices
    figure.text(370, 34, "“Once upon a time, there was a …”", size=13)
    for row, token in enumerate(best.tolist()):
        figure.text(440, 74 + 25 * row, model.tokenizer.write([token]).strip(), anchor="end")
        for line, (name, colour) in enumerate((("as it is", FAINT), ("temperature=0.7", BLUE), ("min_p=0.05", ORANGE))):
            width = 1200 * changed[name][token].item()
            figure.rectangle(448, 62 + 25 * row + 6 * line, width, 5, colour)
    for line, (name, colour) in enumerate((("as it is", FAINT), ("temperature=0.7", BLUE), ("min_p=0.05", ORANGE))):
        figure.text(560, 270 + 16 * line, name, colour, 11)
    return figure


@of("long-contexts", "long-contexts")
def long_contexts(names: Names) -> Figure:
    """Which positions the heads of a layer keep under each policy."""
    figure = Figure(700, 250, "The tokens of a prompt whose keys the heads of a layer keep, by policy")
    length = names["ids"].shape[1]
    figure.text(40, 30, f"layer 20 of SmolLM2: kept positions of {length} tokens, a line for each key head", size=13)
    policies = ("first and recent", "received weight", "last queries", "by layer and head")
    for line, (policy, colour) in enumerate(zip(policies, COLOURS, strict=False)):
        figure.text(40, 62 + 48 * line, policy, colour)
        for head, positions in enumerate(names["caches"][policy].kept(20).positions[0]):
            y = 50 + 48 * line + 11 * head
            figure.rectangle(190, y, 480, 9, GRID, 0.5)
            kept = positions[positions < length]
            for part in kept.tensor_split((kept.diff() > 1).nonzero()[:, 0] + 1):  # consecutive positions
                figure.rectangle(190 + 480 * int(part[0]) / length, y, 480 * len(part) / length, 9, colour)
    return figure


@of("training", "training")
def training(names: Names) -> Figure:
    """Three schedules, and the losses of a run."""
    figure = Figure(700, 310, "Three schedules of the learning rate, and the losses of a small run")
    plot = Plot(figure, (64, 60, 200, 190), (0, 1000), (0, 1e-3))
    plot.axes({0: "0", 100: "100", 1000: "1,000"}, {0: "0", 5e-4: "0.0005", 1e-3: "0.001"}, below="step", title="rate")
    for colour, (name, rates) in zip(COLOURS, names["rates"].items(), strict=False):
        plot.curve(list(enumerate(rates, 1))[::9], colour, name)
    rows = names["rows"]
    plot = Plot(figure, (430, 60, 190, 190), (0, 80), (0, 3.5))
    plot.axes({0: "0", 40: "40", 80: "80"}, {n: str(n) for n in range(4)}, below="step", title="nats per character")
    plot.curve([(row.step, row.loss) for row in rows], FAINT, width=1.5)
    evaluated = [(row.step, row.evaluation_loss) for row in rows if row.evaluation_loss is not None]
    plot.curve(evaluated, ORANGE, "held out")
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
