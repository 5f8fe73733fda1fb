"""The roles of an atlas for the page of a text: what each head was found to do over a corpus, and the atlas's page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...tensors.shapes import wrong
from ...text import printable
from .atlas_pack import AtlasLike


def pack_roles(atlas: AtlasLike, layers: int, heads: int, link: str | None) -> dict[str, Any]:
    """Return the key ``atlas`` of a page's data.

    Its value is ``{"corpus", "tokens", "link": address or null, "roles": [[layer * H + head, [role, ...]], ...]}``.

    Args:
        atlas: of the same model.
        layers: of the model of the text.
        heads: of that model.
        link: the address of the atlas's page, relative to the page of the text; ``None`` if there is none.

    Raises:
        ArgumentError: the atlas is of a model with other layers or heads.
    """
    values = atlas.to_dict()
    model, corpus = values["model"], values["corpus"]
    if (model["layers"], model["heads"]) != (layers, heads):
        got = f"the atlas has {model['layers']} x {model['heads']}, the model of the text {layers} x {heads}"
        raise wrong("atlas", "must be of the model of the text", got, "limelight heads makes one.")
    roles: dict[int, list[str]] = {}
    for row in values["roles"]:
        roles.setdefault(row["layer"] * heads + row["head"], []).append(printable(row["role"]))
    facts = {"corpus": printable(corpus["name"]), "tokens": corpus["tokens"], "link": link}
    return {"atlas": facts | {"roles": [[head, names] for head, names in sorted(roles.items())]}}


def relative_link(page: str | os.PathLike[str], other: str | os.PathLike[str]) -> str:
    """The address of the file ``other`` in a page: relative to the page's folder, and never of a scheme."""
    folder = Path(page).absolute().parent
    return "./" + quote(Path(os.path.relpath(Path(other).absolute(), folder)).as_posix(), errors="surrogateescape")
