"""The losses of a run: a CSV with one line for each step, and a plot of it."""

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

COLUMNS = ("step", "loss", "evaluation_loss", "learning_rate", "gradient_norm", "seconds")
_WAY_OUT = "Restore it, or remove it to go on without the losses of earlier steps."


@dataclass(frozen=True)
class StepRecord:
    """What is logged of one optimizer step.

    Args:
        step: the step, counted from 1.
        loss: mean over its tokens, in nats, label smoothing included.
        evaluation_loss: mean over the held-out tokens, without label smoothing; ``None`` where not measured.
        learning_rate: the learning rate.
        gradient_norm: norm of the gradient before clipping.
        seconds: duration of the step without evaluation and saving.
    """

    step: int
    loss: float
    evaluation_loss: float | None
    learning_rate: float
    gradient_norm: float
    seconds: float


class LossLog:
    """``losses.csv``, to which every step adds a line; numbers are written so that they read back exactly.

    Args:
        path: the file.
        until: the step from which a run is resumed; later lines are dropped.
    """

    def __init__(self, path: Path, until: int = 0) -> None:
        self.rows = [row for row in read_losses(path) if row.step <= until] if until and path.is_file() else []
        if self.rows and self.rows[-1].step != until:
            got = f"its last step is {self.rows[-1].step}"
            raise wrong(str(path), f"must reach step {until}, from which the run is resumed", got, _WAY_OUT)
        with replacing(path) as part:
            part.write_text("".join(map(_line, (COLUMNS, *map(_cells, self.rows)))), "utf-8")
        self._file: TextIO = path.open("a", encoding="utf-8", newline="")

    def add(self, row: StepRecord) -> None:
        """Append the line of a step."""
        self.rows.append(row)
        self._file.write(_line(_cells(row)))
        self._file.flush()

    def to_disk(self) -> None:
        """Flush the lines to the disk (fsync)."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file of the log."""
        self._file.close()


def read_losses(path: Path) -> list[StepRecord]:
    """Read a ``losses.csv``; an incomplete last line, as a killed run leaves it, is left out.

    Raises:
        ArgumentError: a line is not a step, or not the step after that of the line before.
    """
    lines = path.read_text("utf-8", errors="replace").split("\n")[:-1]
    rows: list[StepRecord] = []
    for number, line in enumerate(lines[1:], 2):
        try:
            step, loss, evaluated, *others = line.split(",")
            rate, gradient, seconds = map(float, others)
            row = StepRecord(int(step), float(loss), float(evaluated) if evaluated else None, rate, gradient, seconds)
        except ValueError:
            row = None
        if row is None or (rows and row.step != rows[-1].step + 1):
            got = f"line {number} is {line[:80]!r}"
            raise wrong(str(path), f"must hold {','.join(COLUMNS)} of each step in order", got, _WAY_OUT)
        rows.append(row)
    return rows


def _cells(row: StepRecord) -> tuple[str, ...]:
    numbers = (row.loss, row.evaluation_loss, row.learning_rate, row.gradient_norm)
    return str(row.step), *("" if n is None else repr(n) for n in numbers), f"{row.seconds:.4f}"


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 60, 20, 50, 40
TRAINING, EVALUATION, INK, FAINT, GRID = "#94a3b8", "#c2410c", "#1e293b", "#64748b", "#e2e8f0"
POINTS = 600  # of a line: about one for each pixel


def plot(rows: Sequence[StepRecord], title: str) -> str:
    """Plot the losses by step as SVG: means over neighbouring steps, and every evaluation."""
    training = _means([(row.step, row.loss) for row in rows])
    evaluations = [(row.step, row.evaluation_loss) for row in rows if row.evaluation_loss is not None]
    values = [value for _, value in (*training, *evaluations) if math.isfinite(value)] or [0.0]
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
    parts.append(_text(LEFT, 40, "nats per token: training", TRAINING, 11, "start"))
    parts.append(_text(LEFT + 140, 40, "evaluation", EVALUATION, 11, "start"))
    parts += [line(training, TRAINING, 1.5), line(evaluations, EVALUATION, 2)]
    for point in evaluations:
        x, y = at(point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{EVALUATION}"/>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )


def _means(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Reduce a line to at most `POINTS` points, each the mean of a group of neighbours."""
    size = -(-len(points) // POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def _text(x: float, y: float, words: str, colour: str, size: int, anchor: str, weight: int = 400) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
