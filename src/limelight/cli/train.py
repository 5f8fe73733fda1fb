"""``limelight train``: train a model from scratch on your own text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _print_keys(requested: bool) -> None:
    if not requested:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..training.settings import explained

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("key", no_wrap=True)
    table.add_column("default")
    table.add_column("meaning", overflow="fold", ratio=1)
    for key, default, meaning in explained():
        table.add_row(Text(key), Text(default), Text(meaning.replace("`", "")))
    Console(highlight=False).print(table)
    raise typer.Exit


def train(
    config: Annotated[Path, typer.Argument(help="A TOML file, such as examples/austen.toml.", dir_okay=False)],
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a setting of the file, such as run.steps=100; may be given several times."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; by default runs/NAME, after the name of the file.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume from the newest checkpoint in --output.")] = False,
    keys: Annotated[
        bool,
        typer.Option("--keys", help="Explain every key of the file, and exit.", callback=_print_keys, is_eager=True),
    ] = False,
) -> None:
    """Train a language model on a text, or a translator on sentence pairs, and save a model that `limelight` loads.

    A run that is killed at any moment and started again with --resume has the losses of one that was not. Ctrl-C saves
    a checkpoint first. Several processes, each with its own GPU or all on CPUs: torchrun --nproc_per_node 2 -m
    limelight train CONFIG; run.shard, run.context, run.experts and run.tensor divide the model and its batches among
    them.

    Example: limelight train examples/austen.toml --set data.train=novels.txt --set run.steps=500
    """
    import shlex
    import traceback

    import torch.distributed as dist

    from ..tensors.shapes import wrong
    from ..text import printable
    from ..training import read_settings

    try:
        from ..distributed.failures import RankError
        from ..training.loop import train as run
    except ModuleNotFoundError as error:
        way_out = 'In the folder of Limelight: pip install -c constraints.txt ".[train]"'
        raise wrong("limelight train", "needs the extra `train`", f"{error.name} is not installed", way_out) from error
    if not config.is_file():
        raise wrong("CONFIG", "must be a TOML file", f"{config} does not exist", "See examples/.")
    folder = output or Path("runs") / config.stem
    settings = read_settings(config, change or ())
    try:
        done = run(settings, folder, resume=resume, log=typer.echo)
    except RankError as error:
        if error.reports:
            if error.unexpected is not None:
                traceback.print_exception(error.unexpected)
            typer.secho(f"error: {printable(str(error))}", fg="red", err=True)
        raise typer.Exit(1) from error
    processes, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank:
        raise typer.Exit(130 if done.stopped == "interrupted" else 0)
    if done.evaluation is not None:
        bits = "" if done.bits_per_character is None else f", {done.bits_per_character:.4f} bits per character"
        typer.echo(f"Best after step {done.best_step}: {done.evaluation:.4f} nats per token{bits}.")
    if done.stopped == "interrupted":
        several = ["torchrun", "--nproc_per_node", str(processes), "-m"]
        command = several if processes > 1 else []
        command += ["limelight", "train", str(config), *(part for one in change or () for part in ("--set", one))]
        again = shlex.join([*command, "--output", str(folder), "--resume"])
        typer.echo(f"Interrupted after step {done.steps}; saved. Resume with: {again}")
        raise typer.Exit(130)
    why = f"No improvement in {settings.run.patience} evaluations. " if done.stopped == "patience" else ""
    typer.echo(f"{why}The model, its losses (losses.csv) and their plot (curve.svg) are in {folder}.")
