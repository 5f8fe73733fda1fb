"""A figure of the measurements: bars of the fraction of the machine's peak, ours and PyTorch's, as one SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from .timing import Measurement

WIDTH, LEFT, LINE, BAR = 860, 300, 26, 9
SCALE = 380  # pixels of 100 %
OURS, PEER, TEXT, FAINT = "#c2410c", "#94a3b8", "#1e293b", "#64748b"


def figure_of(about: dict[str, Any], rows: Sequence[Measurement]) -> str:
    """Draw the measurements that have a measured peak, as SVG."""
    parts: list[str] = []
    y = 64
    measured = [row for row in rows if row.fraction is not None]
    for group, members in groupby(measured, key=lambda row: row.case.group):
        parts.append(_text(16, y + 14, group, size=13, weight=600))
        y += LINE
        for row in members:
            parts.append(_row(row, y))
            y += LINE
        y += 8
    height = y + 20
    ticks = "".join(
        f'<line x1="{x}" y1="52" x2="{x}" y2="{y}" stroke="#e2e8f0"/>' + _text(x, 46, f"{share} %", FAINT, 11, "middle")
        for share in (0, 25, 50, 75, 100)
        for x in [LEFT + SCALE * share // 100]
    )
    title = f"{about['processor']}, {about['threads']} threads, {about['instruction set']}"
    versions = f"Limelight {about['limelight']} (dark), PyTorch {about['torch']} (light)"
    key = f"of the machine's peak, measured in the same run: {versions}"
    head = _text(16, 24, title, size=14, weight=600) + _text(16, 44, key, FAINT, 11)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>'
        f"{head}{ticks}{''.join(parts)}</svg>\n"
    )


def _row(row: Measurement, y: int) -> str:
    assert row.fraction is not None
    parts = [_text(LEFT - 8, y + 13, row.case.name, anchor="end"), _bar(row.fraction, y, OURS)]
    label = f"{row.fraction:.0%}" + ("" if row.steady else " (unsteady)")
    if row.ratio is not None:
        parts.append(_bar(row.fraction / row.ratio, y + BAR, PEER))
        label += f"   {row.ratio:.2f}x PyTorch"
    if row.beside_plain is not None:
        label += f"   {row.beside_plain:.2f}x the time of the plain call"
    end = LEFT + SCALE * min(1.1, max(row.fraction, row.fraction / (row.ratio or 1.0)))
    return "".join(parts) + _text(end + 8, y + 13, label, FAINT, 11)


def _bar(fraction: float, y: float, colour: str) -> str:
    return f'<rect x="{LEFT}" y="{y}" width="{SCALE * min(fraction, 1.1):.1f}" height="{BAR}" fill="{colour}"/>'


def _text(
    x: float, y: float, words: str, colour: str = TEXT, size: int = 12, anchor: str = "start", weight: int = 400
) -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="{anchor}">{escape(words)}</text>'
    )
