"""``limelight generate``: let a model write, and see it come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..generation import Beam, Continuation, Sampler
    from ..models import Pretrained


def generate(
    text: Annotated[str | None, typer.Argument(help="What the text begins with.", show_default=False)] = None,
    file: Annotated[
        Path | None, typer.Option(help="Read it from a file (UTF-8; for Whisper a WAV file); - for standard input.")
    ] = None,
    model: Annotated[
        str, typer.Option(help="A name of `limelight models`, a folder, a .gguf file, or a hub name.")
    ] = "smollm2",
    chat: Annotated[bool, typer.Option("--chat", help="The text is a message, and the model answers it.")] = False,
    parse_special_tokens: Annotated[
        bool,
        typer.Option(
            help="With --chat: whether a message that spells a special token (<|im_end|>) holds that token. Off, it "
            "holds the text alone: the safe way for messages from others."
        ),
    ] = True,
    tokens: Annotated[int, typer.Option(help="At most this many are written.", min=1)] = 128,
    temperature: Annotated[float | None, typer.Option(help="Draw tokens; below 1 the likely become likelier.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw among this many.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw among the likeliest that together have this.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Draw among those with this share of the likeliest one's probability.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1, what was said becomes less likely.")] = 1.0,
    beam: Annotated[int | None, typer.Option(help="Search, with this many texts in mind.")] = None,
    length_penalty: Annotated[float | None, typer.Option(help="Of the search; above 0 longer texts gain.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this; may be given several times.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print text, tokens and probabilities as JSON.")] = False,
) -> None:
    """Let a model continue a text, answer a message, translate or write down what is said.

    The likeliest token is taken, unless options draw (--temperature, --top-k, --top-p, --min-p) or search (--beam).

    Example: limelight generate "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 1
    """
    import time

    import torch

    from ..checkpoints.load import load
    from ..generation import Beam
    from ..shapes import FLOATS, wrong

    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampler = _sampler({k: v for k, v in drawing.items() if v is not None}, repetition_penalty, beam, length_penalty)
    dtypes = {str(one).removeprefix("torch."): one for one in FLOATS}
    if dtype not in dtypes:
        raise wrong("--dtype", f"must be one of {', '.join(dtypes)}", f"it is {dtype!r}", "Leave it out for float32.")
    if not (chat or parse_special_tokens):
        got = "the text is continued as it is"
        raise wrong("--no-parse-special-tokens", "belongs to --chat", got, "Add --chat, or leave it out.")
    given = _given(text, file)
    loaded = load(model, dtype=dtypes[dtype])
    prompt = _prompt(loaded, given, chat, parse_special_tokens)
    settings: dict[str, Any] = {"tokens": tokens, "stop": stop or ()}
    begin = time.perf_counter()
    if isinstance(sampler, Beam):
        result = loaded.generate(prompt, sampler, logprobs=True, **settings)[0]
        if not as_json:
            typer.echo(_shown(str(result.text)), color=True)
    else:
        seed = int(torch.randint(2**31, ())) if seed is None and drawing else seed
        _show_prompt(loaded, given, chat or as_json)
        result = _streamed(loaded, prompt, sampler, quiet=as_json, seed=seed, **settings)
    seconds = time.perf_counter() - begin
    if as_json:
        typer.echo(_as_json(loaded, sampler, seed, result, seconds))
    count = len(result.ids)
    typer.secho(f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} a second", err=True, dim=True)


def _sampler(drawing: dict[str, Any], repetition: float, beam: int | None, length_penalty: float | None) -> Any:
    """The sampler that the options ask for."""
    from ..generation import Beam, Greedy, Sample
    from ..shapes import wrong

    if beam is None and length_penalty is not None:
        raise wrong("--length-penalty", "belongs to a search", "there is no --beam", "For example: --beam 4.")
    if beam is not None:
        if drawing:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in drawing)
            raise wrong("--beam", "searches for the likeliest text", f"{named} would draw", "Give one or the other.")
        return Beam(beam, 1.0 if length_penalty is None else length_penalty, repetition)
    return Sample(**drawing, repetition=repetition) if drawing else Greedy(repetition)


def _given(text: str | None, file: Path | None) -> str | Path:
    """A text, or the WAV file with the sound."""
    from .look import read_text

    if text is None and file is not None and file.suffix.lower() == ".wav":
        return file
    return read_text(text, file, 'limelight generate "Once upon a time"')


def _prompt(model: Pretrained, given: str | Path, chat: bool, parse_special_tokens: bool) -> Any:
    """What the model is given to go on from."""
    from ..models import EncoderDecoder
    from ..nn import SpectrumEmbedding
    from ..shapes import wrong
    from ..sound import recording, spectrum

    heard = isinstance(model.network, EncoderDecoder) and isinstance(model.network.encoder.embedding, SpectrumEmbedding)
    if heard != isinstance(given, Path):
        rule, got = ("a sound", "a text is given") if heard else ("a text", f"{given} is a sound")
        way_out = "Give --file speech.wav." if heard else "whisper-tiny-en writes down what is said."
        raise wrong("TEXT or --file", f"must hold {rule} for {model.name}", got, way_out)
    if isinstance(given, Path):
        return spectrum(recording(given))
    return model.conversation(given, parse_special_tokens=parse_special_tokens) if chat else given


def _show_prompt(model: Pretrained, given: str | Path, apart: bool) -> None:
    """What is continued, before its continuation; for a person, not for a pipe."""
    import sys

    from ..models import DecoderOnly

    if isinstance(given, str) and not apart and sys.stdout.isatty() and isinstance(model.network, DecoderOnly):
        typer.secho(_shown(given), nl=False, dim=True)


def _streamed(model: Pretrained, prompt: Any, sampler: Sampler, *, quiet: bool, **settings: Any) -> Continuation:
    """The text, piece by piece; the line is ended also when it is interrupted."""
    pieces = model.stream(prompt, sampler, **settings)
    try:
        for piece in pieces:
            if not quiet:
                typer.echo(_shown(piece), nl=False, color=True)  # as it is: without it, pipes lose escape sequences
    finally:
        if not quiet:
            typer.echo()
    return pieces.result


def _shown(text: str) -> str:
    """A text as it is written: a terminal, which acts on control characters, gets pictures of them."""
    import sys

    from ..text import printable

    return printable(text) if sys.stdout.isatty() else text


def _as_json(model: Pretrained, sampler: Sampler | Beam, seed: int | None, result: Continuation, seconds: float) -> str:
    import json
    import re
    from dataclasses import asdict

    from ..text import CONTROLS

    values = {"model": model.name, "sampler": repr(sampler), "seed": seed, **asdict(result), "seconds": seconds}
    text = json.dumps({"format": "limelight.generation", "version": 1, **values}, indent=2, ensure_ascii=False)
    return re.sub(CONTROLS, lambda found: f"\\u{ord(found[0]):04x}", text)  # which JSON leaves as they are
