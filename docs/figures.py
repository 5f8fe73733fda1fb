"""Figures as SVG, on a light ground of their own: text, rectangles, lines; from them heat maps, curves and bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

PAPER, INK, FAINT, GRID = "#fbfaf7", "#24292f", "#667085", "#e4e0d7"
BLUE, ORANGE, GREEN, PURPLE, RED = "#1f4e79", "#c2410c", "#2f7d4f", "#7a4fa3", "#b42318"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, FAINT)
Points = Sequence[tuple[float, float]]


class Figure:
    """An SVG document that grows by its parts.

    Args:
        width, height: in pixels.
        title: what it shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: str, colour: str = INK, size: int = 12, anchor: str = "start", turn: int = 0
    ) -> None:
        """Words whose baseline begins, ends or has its middle at ``(x, y)``."""
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-size="{size}" text-anchor="{anchor}"{turned}>'
            f"{escape(words)}</text>"
        )

    def rectangle(
        self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1.0, edge: str = ""
    ) -> None:
        """A filled rectangle."""
        stroke = f' stroke="{edge}"' if edge else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" '
            f'fill-opacity="{opacity:.2f}"{stroke}/>'
        )

    def line(self, points: Points, colour: str, width: float = 1.0, dashes: str = "") -> None:
        """A line through the points."""
        through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self.parts.append(
            f'<polyline points="{through}" fill="none" stroke="{colour}" stroke-width="{width:.1f}"{dashed}/>'
        )

    def cells(self, corners: Sequence[tuple[float, float, float]], side: float, colour: str) -> None:
        """Squares of one size and colour, each with its left upper corner and its opacity."""
        drawn = (
            f'<path d="M{x:.1f} {y:.1f}h{side:g}v{side:g}h-{side:g}z" fill-opacity="{opacity:.2f}"/>'
            for x, y, opacity in corners
        )
        self.parts += [f'<g fill="{colour}">', *drawn, "</g>"]

    def picture(self, x: float, y: float, svg: str) -> None:
        """Another SVG document inside."""
        self.parts.append(svg.replace("<svg ", f'<svg x="{x:.1f}" y="{y:.1f}" ', 1))

    def svg(self) -> str:
        """The document."""
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" font-family="system-ui, sans-serif" role="img">',
                f"<title>{escape(self.title)}</title>",
                f'<rect width="{self.width}" height="{self.height}" rx="6" fill="{PAPER}"/>',
                *self.parts,
                "</svg>\n",
            ]
        )


def heat(
    figure: Figure,
    x: float,
    y: float,
    values: Sequence[Sequence[float]],
    *,
    cell: float,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    digits: int | None = None,
    top: float | None = None,
    colour: str = BLUE,
) -> None:
    """A heat map with its upper left corner at ``(x, y)``: darker is more, negative is orange.

    Args:
        figure: drawn on.
        x, y: in pixels.
        values: row by row.
        cell: pixels of a side.
        rows, columns: names, left and above.
        digits: of the numbers written into the cells; ``None`` for none.
        top: the darkest value; by default the largest.
        colour: of positive values.
    """
    most = top or max(max(map(abs, row)) for row in values) or 1.0
    figure.rectangle(x, y, cell * len(values[0]), cell * len(values), "#ffffff", edge=GRID)
    places = [(x + j * cell, y + i * cell, value / most) for i, row in enumerate(values) for j, value in enumerate(row)]
    for one, sign in ((colour, 1), (ORANGE, -1)):
        corners = [(left, high, min(1.0, sign * share)) for left, high, share in places if sign * share > 0]
        figure.cells(corners, cell, one)
    for i, row in enumerate(values):
        if rows:
            figure.text(x - 6, y + (i + 0.5) * cell + 4, rows[i], anchor="end")
        for j, value in enumerate(row if digits is not None else ()):
            written = f"{round(value, digits or 0) + 0.0:.{digits}f}"  # + 0.0: no minus before a zero
            written = written.replace("0.", ".", 1) if abs(value) < 0.995 else written
            shade = "#ffffff" if abs(value) > 0.55 * most else INK
            figure.text(x + (j + 0.5) * cell, y + (i + 0.5) * cell + 4, written, shade, 11, "middle")
    for j, name in enumerate(columns):
        if all(len(each) <= 3 for each in columns):
            figure.text(x + (j + 0.5) * cell, y - 6, name, anchor="middle")
        else:
            figure.text(x + (j + 0.5) * cell + 4, y - 6, name, turn=-45)


class Plot:
    """Axes for curves.

    Args:
        figure: drawn on.
        box: left, top, width and height in pixels.
        across, up: the least and the greatest value of either axis.
        logarithmic: which axes are.
    """

    def __init__(
        self,
        figure: Figure,
        box: tuple[float, float, float, float],
        across: tuple[float, float],
        up: tuple[float, float],
        *,
        logarithmic: tuple[bool, bool] = (False, False),
    ) -> None:
        self.figure, self.box, self.across, self.up, self.logarithmic = figure, box, across, up, logarithmic
        self._names: list[float] = []  # heights at which names of curves stand

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        left, top, width, height = self.box
        return (
            left + width * _place(x, self.across, self.logarithmic[0]),
            top + height * (1 - _place(y, self.up, self.logarithmic[1])),
        )

    def axes(
        self, xs: dict[float, str], ys: dict[float, str], *, below: str = "", above: str = "", title: str = ""
    ) -> None:
        """Marks at values with their names, what the axes measure, and a title."""
        left, top, width, height = self.box
        for y, name in ys.items():
            at = self.at(self.across[0], y)[1]
            self.figure.line([(left, at), (left + width, at)], GRID)
            self.figure.text(left - 6, at + 4, name, FAINT, 11, "end")
        for x, name in xs.items():
            at = self.at(x, self.up[0])[0]
            self.figure.line([(at, top + height), (at, top + height + 4)], FAINT)
            self.figure.text(at, top + height + 17, name, FAINT, 11, "middle")
        self.figure.line([(left, top + height), (left + width, top + height)], FAINT)
        self.figure.text(left + width / 2, top + height + 34, below, FAINT, 11, "middle")
        self.figure.text(left, top - 8, above, FAINT, 11)
        self.figure.text(left, top - 26, title, INK, 13)

    def curve(self, points: Points, colour: str, name: str = "", *, width: float = 2.0, dashes: str = "") -> None:
        """A curve, with its name behind its last point, below the names that are there already."""
        drawn = [self.at(*point) for point in points]
        self.figure.line(drawn, colour, width, dashes)
        if name:
            x, y = drawn[-1]
            for taken in sorted(self._names):
                y = taken + 13 if abs(y - taken) < 13 else y
            self._names.append(y)
            self.figure.text(x + 5, y + 4, name, colour, 11)

    def bar(self, x: float, y: float, width: float, colour: str) -> None:
        """A bar from 0 to ``y``, ``width`` pixels wide, in the middle of ``x``."""
        at, high = self.at(x, y)
        low = self.at(x, self.up[0])[1]
        self.figure.rectangle(at - width / 2, high, width, low - high, colour)


def _place(value: float, ends: tuple[float, float], logarithmic: bool) -> float:
    low, high = (math.log(end) for end in ends) if logarithmic else ends
    return ((math.log(value) if logarithmic else value) - low) / (high - low)
