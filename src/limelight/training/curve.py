"""The losses of a run: a CSV with a line a step, and a picture of it."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TextIO

from ..tensors.shapes import wrong
from .checkpoint import replacing

COLUMNS = ("step", "loss", "evaluation", "rate", "gradient", "seconds")
_WITHOUT = "Restore it, or remove it to go on without the losses of earlier steps."


@dataclass(frozen=True)
class Row:
    """One step.

    Args:
        step: counted from 1.
        loss: mean over its tokens, in nats, smoothing included.
        evaluation: mean over the tokens that are never learned from, without smoothing; ``None`` where not measured.
        rate: the learning rate.
        gradient: norm of the gradient before clipping.
        seconds: that the step took, evaluation and saving left out.
    """

    step: int
    loss: float
    evaluation: float | None
    rate: float
    gradient: float
    seconds: float


class Losses:
    """``losses.csv``, which grows by a line a step; numbers are written so that they read back as they were.

    Args:
        path: the file.
        until: steps of a run before that are kept; later lines are dropped, for the run goes on from there.
    """

    def __init__(self, path: Path, until: int = 0) -> None:
        self.rows = [row for row in read_losses(path) if row.step <= until] if until and path.is_file() else []
        if self.rows and self.rows[-1].step != until:
            got = f"its last step is {self.rows[-1].step}"
            raise wrong(str(path), f"must reach step {until}, from which the run goes on", got, _WITHOUT)
        with replacing(path) as part:
            part.write_text("".join(map(_line, (COLUMNS, *map(_cells, self.rows)))), "utf-8")
        self._file: TextIO = path.open("a", encoding="utf-8", newline="")

    def add(self, row: Row) -> None:
        """Write one more line."""
        self.rows.append(row)
        self._file.write(_line(_cells(row)))
        self._file.flush()

    def to_disk(self) -> None:
        """Wait until the lines are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_losses(path: Path) -> list[Row]:
    """The rows of a ``losses.csv``; a last line that a kill cut short is left out.

    Raises:
        ArgumentError: a line that is no step, or not the step after the one before.
    """
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]
    rows: list[Row] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            step, loss, evaluated, *others = line.split(",")
            rate, gradient, seconds = map(float, others)
            row = Row(int(step), float(loss), float(evaluated) if evaluated else None, rate, gradient, seconds)
        except ValueError:
            row = None
        if row is None or (rows and row.step != rows[-1].step + 1):
            got = f"line {number} is {line[:80]!r}"
            raise wrong(str(path), f"must hold {','.join(COLUMNS)} of each step in order", got, _WITHOUT)
        rows.append(row)
    return rows


def _cells(row: Row) -> tuple[str, ...]:
    numbers = (row.loss, row.evaluation, row.rate, row.gradient)
    return str(row.step), *("" if n is None else repr(n) for n in numbers), f"{row.seconds:.4f}"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 60, 20, 50, 40
LEARNED, EVALUATED, INK, FAINT, GRID = "#94a3b8", "#c2410c", "#1e293b", "#64748b", "#e2e8f0"
POINTS = 600  # of a line; more cannot be told apart


def picture(rows: Sequence[Row], title: str) -> str:
    """The losses by the step, as SVG: a mean of neighbouring steps, and every evaluation."""
    learned = _means([(row.step, row.loss) for row in rows])
    evaluated = [(row.step, row.evaluation) for row in rows if row.evaluation is not None]
    values = [value for _, value in (*learned, *evaluated) if math.isfinite(value)] or [0.0]
    low, high = min(values), max(values)
    step = 10 ** math.floor(math.log10(max(high - low, 1e-6))) / 2
    low, high = step * math.floor(low / step), step * (math.floor(high / step) + 1)
    last = max((row.step for row in rows), default=1)

    def at(point: tuple[int, float]) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / last
        return across, TOP + (HEIGHT - TOP - BOTTOM) * (high - point[1]) / (high - low)

    def line(points: Sequence[tuple[int, float]], colour: str, width: float) -> str:
        drawn = " ".join("{:.1f},{:.1f}".format(*at(point)) for point in points if math.isfinite(point[1]))
        return f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="{width}"/>'

    parts = [_text(LEFT, 22, title, INK, 14, "start", 600)]
    for number in range(round((high - low) / step) + 1):
        value = low + number * step
        y = at((0, value))[1]
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{value:.4g}", FAINT, 11, "end"))
    for number in range(5):
        x = LEFT + (WIDTH - LEFT - RIGHT) * number / 4
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{last * number // 4:,}", FAINT, 11, "middle"))
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 6, "step", FAINT, 11, "end"))
    parts.append(_text(LEFT, 40, "nats per token: learned", LEARNED, 11, "start"))
    parts.append(_text(LEFT + 140, 40, "evaluated", EVALUATED, 11, "start"))
    parts += [line(learned, LEARNED, 1.5), line(evaluated, EVALUATED, 2)]
    for point in evaluated:
        x, y = at(point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{EVALUATED}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _means(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most `POINTS` points, each the mean of its neighbours."""
    size = -(-len(points) // POINTS) or 1
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]


def _text(x: float, y: float, words: str, colour: str, size: int, anchor: str, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
