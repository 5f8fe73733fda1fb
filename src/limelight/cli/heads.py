"""``limelight heads``: measure what every head of a model does over a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import MODEL, errors_of, writable

if TYPE_CHECKING:
    from ..microscope import Atlas
    from ..microscope.subjects import Subject


def heads(
    model: Annotated[str, typer.Option(help=MODEL)] = "minilm",
    corpus: Annotated[
        Path | None,
        typer.Option(help="A text file or a folder of them (UTF-8); without it, four chapters of a novel."),
    ] = None,
    conllu: Annotated[Path | None, typer.Option(help="A treebank in CoNLL-U: measure its relations.")] = None,
    gap: Annotated[Path | None, typer.Option(help="A file of GAP: measure pronouns and their names.")] = None,
    winogender: Annotated[Path | None, typer.Option(help="A file of Winogender sentences; for encoders.")] = None,
    senses: Annotated[
        Path | None, typer.Option(help="Word senses: lines of word, sense and sentence, separated by tabs.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(help="Stop reading the corpus after the text that reaches this many tokens.")
    ] = 100_000,
    context: Annotated[int, typer.Option(help="Tokens per text, at most; longer ones are cut at sentences.")] = 256,
    ablate: Annotated[
        int, typer.Option(help="Silence each head on so many tokens (512 without a number); one run for each head.")
    ] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Write the page of the atlas: one HTML file, at most 5 MB.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write everything as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write every measure of every head as CSV.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write every measure of every head as Parquet.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run of the same options.")] = False,
    compare: Annotated[
        str | None, typer.Option(help="Compare head by head with this model, or with the JSON of an atlas.")
    ] = None,
) -> None:
    """Measure what every head of a model does over a corpus, and name the roles that hold on texts kept apart.

    Example: limelight heads --model smollm2 --corpus novel.txt --output atlas.html
    """
    written = {"--output": output, "--json": json, "--csv": csv, "--parquet": parquet}
    paths = _checked(written)
    from rich.console import Console

    from ..microscope import AtlasComparison, load_atlas, write_atlas
    from ..microscope.choosing import facts
    from ..microscope.heads import heads as run
    from ..microscope.heads.against import check_comparable
    from ..microscope.subjects import subject_of
    from ..microscope.terminal.atlas import summarise_atlas, summarise_comparison
    from ..tensors.shapes import wrong
    from ..text import printable

    if resume and not paths:
        raise wrong("--resume", "needs the file that the interrupted run was to write", "none is named", "Add --json.")
    subject = subject_of(model)
    other = second = None
    if compare is not None:  # before a long run
        with errors_of("--compare", "path", "name_or_path", "model"):
            if compare.lower().endswith(".json"):
                other = load_atlas(compare)
                compared = other.model
            else:
                second = subject_of(compare)
                compared = facts(second)
            check_comparable(facts(subject), compared)
    state = paths[0].with_name(f"{paths[0].name}.state") if paths else None
    labels: dict[str, Any] = {"conllu": conllu, "gap": gap, "winogender": winogender, "senses": senses}
    settings: dict[str, Any] = {"tokens": tokens, "context": context, "ablate": ablate, **labels}

    def measure(of: Subject, **resuming: Any) -> Atlas:
        return run(of, corpus, **settings, **resuming)

    atlas = measure(subject, state=state, resume=resume)
    complete = atlas.corpus["complete"]
    if second is not None and complete:
        other = measure(second)
    comparison = None if other is None else AtlasComparison(atlas, other)
    for path, table in ((json, None), (csv, "measures"), (parquet, "measures")):
        if path is not None:
            atlas.write(path, table)
    if output is not None:
        with Console(stderr=True).status("Writing the page"):
            write_atlas(atlas, output, other)
    console = Console(highlight=False)
    summarise_atlas(atlas, console)
    if comparison is not None:
        summarise_comparison(comparison, console)
    for path in paths:
        name = printable(str(path))
        console.print(f"Written: {name} ({path.stat().st_size / 1e6:.2f} MB)", markup=False, soft_wrap=True)
    if not complete:
        more = "Run the command again with --resume to continue." if paths else "With --json it could be resumed."
        console.print(more, style="yellow")
        raise typer.Exit(130)


def _checked(written: dict[str, Path | None]) -> list[Path]:
    """The files to write, after a check that they can be.

    Raises:
        ArgumentError: a file is a folder, lies in none that exists, or has another suffix than its format.
    """
    from ..tensors.shapes import wrong

    for option, path in written.items():
        if path is None:
            continue
        writable(option, path, ".html" if option == "--output" else f".{option.removeprefix('--')}")
    if written["--parquet"] is not None:
        from importlib.util import find_spec

        if find_spec("pyarrow") is None:
            way_out = "Try: pip install pandas pyarrow (the extra `data`)."
            raise wrong("--parquet", "needs pyarrow", "pyarrow is not installed", way_out)
    return [path for path in written.values() if path is not None]
