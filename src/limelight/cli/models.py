"""``limelight models``: the models that can be had by name."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the packaged models: what each is, what it costs, and whether it is here already.

    Any folder with config.json and safetensors, any .gguf file and any Hugging Face hub name of a family that Limelight
    builds can be named in the same place.

    Example: limelight models
    """
    listed = _listed()
    if as_json:
        typer.echo(json.dumps(listed, indent=2))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from ..checkpoints.packaged import cache_folder
    from ..models.families import FAMILIES

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for heading in ("download", "on disk"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("licence", no_wrap=True)
    table.add_column("here", no_wrap=True)
    for model in listed:
        sizes = (f"{model[key] / 1e6:.1f} MB" for key in ("download_bytes", "disk_bytes"))
        table.add_row(model["name"], model["what"], *sizes, model["licence"], "yes" if model["cached"] else "no")
    console = Console()
    console.print(table)
    console.print(
        f"A model that is not here is fetched when it is first used, into {cache_folder()} (LIMELIGHT_CACHE)."
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
