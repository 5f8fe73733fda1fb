"""``limelight models``: the packaged models."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .options import fitting

DESCRIPTION = 22  # columns that a description needs


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the packaged models: what each is, its size, and whether it is in the cache.

    Wherever a model is named, a folder with config.json and safetensors, a .gguf file or a Hugging Face hub name of a
    supported family will do too.

    Example: limelight models
    """
    listed = _listed()
    if as_json:
        typer.echo(json.dumps({"format": "limelight.models", "version": 1, "models": listed}, indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ..checkpoints.packaged import cache_folder
    from ..models.families import FAMILIES

    console = Console()
    columns = {
        "name": [model["name"] for model in listed],
        "download": [f"{model['download_bytes'] / 1e6:.1f} MB" for model in listed],
        "on disk": [f"{model['disk_bytes'] / 1e6:.1f} MB" for model in listed],
        "licence": [model["licence"] for model in listed],
        "cached": ["yes" if model["cached"] else "no" for model in listed],
    }
    columns = fitting(columns, console.width - DESCRIPTION, ["licence", "on disk", "download"])
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        sizes = name in ("download", "on disk")
        table.add_column(
            name, style="bold" if name == "name" else "", justify="right" if sizes else "left", no_wrap=True
        )
        if name == "name":
            table.add_column("description", overflow="fold")
    for model, (name, *cells) in zip(listed, zip(*columns.values(), strict=True), strict=True):
        table.add_row(name, model["what"], *cells)
    console.print(table)
    console.print(
        f"A model that is not cached is downloaded when it is first used, into {cache_folder()} (LIMELIGHT_CACHE)."
    )
    console.print(
        f"Also: a folder, a .gguf file, or a Hugging Face hub name, of the families {', '.join(FAMILIES)}.",
        highlight=False,
    )


def _listed() -> list[dict[str, Any]]:
    from ..checkpoints.packaged import PACKAGED

    return [
        {
            "name": model.name,
            "what": model.what,
            "licence": model.licence,
            "download_bytes": model.wheel_size,
            "disk_bytes": model.size,
            "cached": model.cached,
            "folder": str(model.folder),
            "package": model.requirement,
            "repository": model.repository,
        }
        for model in PACKAGED.values()
    ]
