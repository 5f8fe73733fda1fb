"""Write a page into a file, in one step."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from ..files import write_atomically
from .atlas_pack import AtlasLike, pack_atlas
from .atlas_roles import pack_roles, relative_link
from .compose import compose
from .contents import Contents
from .pack import pack
from .pack_sources import pack_cross, pack_pictures

PAGE_LIMIT = 3_000_000 - 1  # bytes: under 3 MB up to `LONG` tokens,
LONG, LONG_LIMIT = 10_000, 8_000_000 - 1  # and under 8 MB beyond
ATLAS_LIMIT = 5_000_000  # bytes, for any number of heads


def make_page(
    report: Contents, limit: int | None = None, atlas: AtlasLike | None = None, atlas_link: str | None = None
) -> str:
    """Return the page as text, at most ``limit`` bytes of UTF-8; by default 3 MB, and 8 MB beyond 10,000 tokens.

    Args:
        report: of one text, or of two.
        limit: of the page, in bytes; detail is reduced until it fits.
        atlas: of the same model: the roles of its heads stand beside the heads of the page.
        atlas_link: the address of the atlas's page, relative to this one.

    Raises:
        ArgumentError: the atlas is of a model with other layers or heads.
        ValueError: not even the coarsest form of the report fits.
    """
    if limit is None:
        limit = LONG_LIMIT if sum(reading.length for reading in report.readings) > LONG else PAGE_LIMIT
    model = report.model
    roles = {} if atlas is None else pack_roles(atlas, model.layers, model.heads, atlas_link)
    return compose("view", f"{_title(report)} · {model.name}", partial(_pack, report, roles), limit)


def _pack(report: Contents, roles: dict[str, Any], limit: int) -> str:
    """The data of the page; of an encoder-decoder or a picture it holds more than that of a text."""
    part = limit * 3 // 5
    return pack(report, limit, beside={**roles, **pack_cross(report, part), **pack_pictures(report.pictures, part)})


def _title(report: Contents) -> str:
    """What the report is about, in at most 60 characters."""
    text = "A picture" if report.pictures else " ".join(report.readings[0].text.split())
    return text if len(text) <= 60 else text[:59] + "…"


def write_page(
    report: Contents,
    path: str | os.PathLike[str],
    atlas: AtlasLike | None = None,
    atlas_page: str | os.PathLike[str] | None = None,
) -> int:
    """Write the page to ``path`` and return its size in bytes. The file is replaced atomically.

    Args:
        report: of one text, or of two.
        path: of the HTML file.
        atlas: of the same model, as `limelight.heads` returns it: the roles of its heads stand beside the heads.
        atlas_page: the file that `write_atlas` wrote: the page links to it, relative to ``path``.

    Raises:
        ArgumentError: the atlas is of a model with other layers or heads.
        OSError: the folder does not exist or cannot be written to.
    """
    link = None if atlas_page is None else relative_link(path, atlas_page)
    return write_atomically(path, make_page(report, atlas=atlas, atlas_link=link).encode())


def make_atlas(atlas: AtlasLike, other: AtlasLike | None = None, limit: int = ATLAS_LIMIT) -> str:
    """Return the page of an atlas as text, at most ``limit`` bytes of UTF-8: all heads of a model over a corpus.

    Args:
        atlas: what was measured of every head, as `limelight.heads` returns it.
        other: an atlas of a second model or checkpoint with as many layers and heads, shown head by head beside it.
        limit: of the page in bytes; examples and heat maps are left out, the weakest first, until it fits.

    Raises:
        ArgumentError: the two atlases differ in layers or heads.
        ValueError: the page does not fit even without examples.
    """
    described = atlas.to_dict()
    title = f"Atlas of heads · {described['model']['name']}"
    against = None if other is None else other.to_dict()
    return compose("atlas", title, partial(pack_atlas, described, against), limit)


def write_atlas(atlas: AtlasLike, path: str | os.PathLike[str], other: AtlasLike | None = None) -> int:
    """Write the page of an atlas to ``path`` and return its size in bytes. The file is replaced atomically.

    Args:
        atlas: what was measured of every head, as `limelight.heads` returns it.
        path: of the HTML file.
        other: a second atlas to compare with, head by head.

    Raises:
        OSError: the folder does not exist or cannot be written to.
        ArgumentError: the two atlases differ in layers or heads.
        ValueError: the page does not fit even without examples.
    """
    return write_atomically(path, make_atlas(atlas, other).encode())
