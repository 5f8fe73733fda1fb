"""What an encoder-decoder looked at in its source, and where the patches of a picture looked, for the page.

Two keys beside those that the top of ``pack.py`` describes; their TypeScript twins are ``web/src/sources/data.ts`` and
``web/src/pictures/data.ts``. N layers, H heads, L tokens of the target, S parts of the source::

    "cross": {
      "layers": N, "heads": H, "states": of the encoder, silence or padding included,
      "kept": [layer * H + head, ...], all heads, or of a large model those that align,
      "aligning": [layer * H + head, ...], "named": whether the checkpoint names them,
      "weights": {"levels", "codes": Packed (kept, L, S), "top": Packed (kept, L)}, of the query at each position,
      "alignment": [[unit, weight, even share], ...] of each word of the target (of a sound empty),
      "text": null or {"text", "units": {"text": [...], "start", "end", "special": [unit, ...], "members": [[S], ...]}},
      "sound": null or {"join": states in a part, "seconds": of a state, "length": states,
                        "times": [[start, end], ...] of each word of the target, in seconds,
                        "spectrum": Packed (bands, frames) 0 to 1, low frequencies first, "frame": seconds of a frame},
      "encoder": null or the data of a page of the encoder's self-attention over the source}
    "pictures": [{"width", "height", "pixels": Packed (height, width, 3), "rows", "columns", "before", "join",
                  "weights": {"levels", "codes": Packed (N, H, M, M), "top": Packed (N, H, M)}}, ...], one per text

A weight is ``top * (code / levels)^2`` (`pack_rows`). The number of levels, and of a sound and a picture the number of
parts, fall until the data fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..reading.pictures import Picture
from ..reading.record import Floats
from ..sources.cross import Cross
from .contents import Contents
from .numbers import pack_numbers, pack_rows
from .pack import pack
from .pack_reading import VISIBLE

LEVELS = (65535, 255, 31, 15, 7)
JOINS = (2, 4, 8)  # states of a sound, or cells along a side of a picture, that are joined into one
PIXELS = 400_000  # of a picture; a larger one is shown at half, a third ... of its size
FRAME = 0.01  # seconds of a frame of the spectrum that a model hears


def pack_cross(report: Contents, limit: int) -> dict[str, Any]:
    """Return ``{"cross": ...}`` in about ``limit`` bytes; nothing for a model without cross-attention.

    Args:
        report: what the page is made from.
        limit: in bytes; the weights lose detail until they fit, at last those of the heads that do not align.
    """
    cross = report.cross
    if cross is None:
        return {}
    heads = cross.weights.shape[1]
    fixed: dict[str, Any] = {
        "layers": len(cross.weights),
        "heads": heads,
        "states": cross.states,
        "aligning": [layer * heads + head for layer, head in cross.heads],
        "named": bool(cross.named),
        "alignment": [],
        "text": None,
        "sound": None,
        "encoder": _encoder(report.source, limit // 3),
    }
    rows = cross.alignment()
    if cross.source.text is None:
        fixed["sound"] = _sound(cross, [[row["start"], row["end"]] for row in rows])
    else:
        fixed["text"] = _text(cross)
        fixed["alignment"] = [[row["source_index"], row["weight"], row["uniform"]] for row in rows]
    room = limit - len(json.dumps(fixed))
    for kept, join, levels in _details(cross):
        flat = cross.weights.reshape(-1, *cross.weights.shape[2:])[kept]
        weights = {"levels": levels, **pack_rows(_joined(flat, join), levels)}
        if _size(weights) <= room:
            break
    if fixed["sound"]:
        fixed["sound"]["join"] = join
    return {"cross": {**fixed, "kept": kept, "weights": weights}}


def _details(cross: Cross) -> Iterator[tuple[list[int], int, int]]:
    """Levels of detail, finest first: the kept heads, how many states are joined, and levels."""
    heads = cross.weights.shape[1]
    every = list(range(len(cross.weights) * heads))
    joins = JOINS if cross.source.text is None else ()
    yield from ((every, 1, levels) for levels in LEVELS)
    yield from ((every, join, LEVELS[-1]) for join in joins)
    aligning = [layer * heads + head for layer, head in cross.heads] or every[:1]
    yield from ((aligning, join, LEVELS[-1]) for join in (1, *joins))


def _joined(weights: Floats, join: int) -> Floats:
    """Sum every ``join`` neighbours of the last axis."""
    if join == 1:
        return weights
    return np.add.reduceat(weights, np.arange(0, weights.shape[-1], join), axis=-1)


def _size(weights: dict[str, Any]) -> int:
    return sum(len(part["data"]) for part in weights.values() if isinstance(part, dict))


def _encoder(source: Contents | None, limit: int) -> dict[str, Any] | None:
    """The page of the encoder, if there is room for it."""
    if source is None:
        return None
    try:
        page: dict[str, Any] = json.loads(pack(source, limit))
    except ValueError:
        return None
    return page


def _text(cross: Cross) -> dict[str, Any]:
    assert cross.source.text is not None
    units = cross.units
    return {
        "text": cross.source.text.text.translate(VISIBLE),
        "units": {
            "text": [unit.text.translate(VISIBLE) for unit in units],
            "start": [int(unit.start) for unit in units],
            "end": [int(unit.end) for unit in units],
            "special": [number for number, unit in enumerate(units) if unit.special],
            "members": [list(unit.members) for unit in units],
        },
    }


def _sound(cross: Cross, times: list[list[float]]) -> dict[str, Any]:
    seconds = cross.source.seconds
    assert seconds is not None
    frames = round(cross.source.length * seconds / FRAME)
    spectrum = cross.source.input[0, :, :frames].detach().float().cpu().numpy()
    scaled = (spectrum - spectrum.min()) / max(float(np.ptp(spectrum)), 1e-9)
    return {
        "join": 1,
        "seconds": seconds,
        "length": cross.source.length,
        "times": times,
        "spectrum": pack_numbers(scaled, 8, 0.0, 1.0),
        "frame": FRAME,
    }


def pack_pictures(pictures: Sequence[Picture], limit: int) -> dict[str, Any]:
    """Return ``{"pictures": [...]}`` in about ``limit`` bytes; nothing where there are none.

    Args:
        pictures: in the order of the readings.
        limit: in bytes; the weights lose detail until they fit.
    """
    if not pictures:
        return {}
    each = limit // len(pictures)
    return {"pictures": [_picture(picture, each) for picture in pictures]}


def _picture(picture: Picture, limit: int) -> dict[str, Any]:
    pixels = _smaller(picture.pixels)
    shown = pack_numbers(pixels, 8, 0.0, 255.0)
    details = [(1, levels) for levels in LEVELS] + [(join, LEVELS[-2]) for join in JOINS]
    for join, levels in details:
        one = picture if join == 1 else picture.coarser(join)
        weights = {"levels": levels, **pack_rows(one.weights, levels)}
        if _size(weights) + len(shown["data"]) <= limit:
            break
    return {
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "pixels": shown,
        "rows": picture.rows,
        "columns": picture.columns,
        "before": picture.before,
        "join": one.join,
        "weights": weights,
    }


def _smaller(pixels: Any) -> Any:
    """A picture of at most `PIXELS` pixels: means over squares."""
    by = 1
    while pixels.shape[0] // by * (pixels.shape[1] // by) > PIXELS:
        by += 1
    if by == 1:
        return pixels
    height, width = (side // by for side in pixels.shape[:2])
    squares = pixels[: height * by, : width * by].reshape(height, by, width, by, 3)
    return squares.mean((1, 3)).round().astype(np.uint8)
