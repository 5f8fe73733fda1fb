"""``limelight generate``: generate text with a model, streamed to the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import MODEL, Dtype, dtype_of, echo, echo_json, errors_of, read_text, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from ..generation import Beam, Continuation, Sampler
    from ..nn import Keep
    from ..pretrained import Pretrained


def generate(
    text: Annotated[str | None, typer.Argument(help="The prompt; - for standard input.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="Read the prompt from a file (UTF-8; for Whisper a WAV file); - for standard input."),
    ] = None,
    model: Annotated[str, typer.Option(help=MODEL)] = "smollm2",
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a message to answer; without a prompt, an interactive chat.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="The system prompt of a --chat.")] = None,
    parse_special_tokens: Annotated[
        bool,
        typer.Option(
            help="With --chat: parse special tokens such as <|im_end|> in messages. Off, they are plain text, which is "
            "safe for messages from others."
        ),
    ] = True,
    tokens: Annotated[int, typer.Option(help="Maximum number of new tokens.", min=1)] = 128,
    temperature: Annotated[
        float | None, typer.Option(help="Sampling temperature; below 1 sharpens the distribution.")
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many of the most likely tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the most likely tokens that together have this probability.")
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="Sample from tokens with at least this share of the probability of the most likely one."),
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Repetition penalty; 1 is off.")] = 1.0,
    beam: Annotated[int | None, typer.Option(help="Beam search with this many beams.")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Length penalty of the beam search; above 0 favours longer texts.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling; the same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this string; may be given several times.")] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="Keep this many keys and values per head, or this share of them (0.25), so that a long text fits "
            "into little memory."
        ),
    ] = None,
    keep_by: Annotated[
        str | None, typer.Option(help="With --keep: which are kept: recency (the default), received or last-queries.")
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            help="Keep keys and values in 8 bits: int8, float8_e4m3fn or float8_e5m2. An approximation, in about half "
            "the memory of bfloat16."
        ),
    ] = None,
    dtype: Dtype = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print text, tokens and probabilities as JSON.")] = False,
) -> None:
    """Continue a text, answer a message, translate, or transcribe speech.

    Decoding is greedy, unless options ask for sampling (--temperature, --top-k, --top-p, --min-p) or beam search
    (--beam). With --chat and no prompt, on a terminal, you chat with the model: Ctrl-C interrupts an answer, Ctrl-D
    ends the chat.

    --keep evicts keys and values from the cache: with --keep-by recency all but the first and the last tokens, with
    received those that received the least weight so far (H2O), with last-queries those that the last 64 tokens look at
    the least (SnapKV).

    Example: limelight generate "Once upon a time" --temperature 0.8 --top-p 0.9 --seed 1

    --cache int8 rounds keys and values to 8 bits, with a scale for each token and head, after a rotation.

    Example: limelight generate --file book.txt --tokens 200 --keep 1024 --keep-by received

    Example: limelight generate --file book.txt --dtype bfloat16 --cache int8
    """
    import torch

    from ..checkpoints.load import load

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    sampling = {name: value for name, value in given.items() if value is not None}
    sampler = _sampler(sampling, repetition_penalty, beam, length_penalty)
    _check(sampling, seed, beam, system, chat, parse_special_tokens, stop or ())
    if sampling and seed is None:
        seed = int(torch.randint(2**31, (), dtype=torch.int64, device="cpu"))
    number = dtype_of(dtype)
    settings: dict[str, Any] = {"tokens": tokens, "stop": stop or (), "seed": seed, "keep": _keep(keep, keep_by)}
    settings["cache_dtype"] = _cache(cache)
    if chat and text is None and file is None and sys.stdin.isatty() and not as_json:
        _talk(load(model, dtype=number), system, parse_special_tokens, sampler, **settings)
        return
    prompt = _given(text, file)
    loaded = load(model, dtype=number)
    begun = _prompt(loaded, prompt, chat, system, parse_special_tokens)
    _write(loaded, prompt, begun, sampler, chat=chat, as_json=as_json, **settings)


def _check(
    sampling: dict[str, Any],
    seed: int | None,
    beam: int | None,
    system: str | None,
    chat: bool,
    parse_special_tokens: bool,
    stop: Sequence[str],
) -> None:
    """Check that options are given together with those that they belong to.

    Raises:
        ArgumentError: an option without the one that it belongs to, or an empty stop string.
    """
    from ..tensors.shapes import wrong

    if seed is not None and not sampling:
        got = "--beam searches" if beam is not None else "decoding is greedy"
        raise wrong("--seed", "belongs to sampling", got, "For example: --temperature 0.8.")
    if system is not None and not chat:
        raise wrong("--system", "belongs to a conversation", "there is no --chat", "Add --chat.")
    if not (chat or parse_special_tokens):
        got = "the text is continued as it is"
        raise wrong("--no-parse-special-tokens", "belongs to --chat", got, "Add --chat, or leave it out.")
    if "" in stop:
        raise wrong("--stop", "must be a string that is not empty", "it is ''", "For example: --stop END.")


def _keep(tokens: str | None, by: str | None) -> Keep | None:
    """Return the policy of the cache.

    Raises:
        ArgumentError: no such ranking, or one without ``--keep``; a budget that is no number, or too small.
    """
    from ..nn import Keep, LastQueries, Received, Recency
    from ..tensors.shapes import wrong

    kinds = {"recency": Recency, "received": Received, "last-queries": LastQueries}
    if by is not None and by not in kinds:
        raise wrong("--keep-by", f"must be one of {', '.join(kinds)}", f"it is {by!r}", "Leave it out for recency.")
    if tokens is None:
        if by is not None:
            raise wrong("--keep-by", "belongs to --keep", "there is none", "For example: --keep 1024.")
        return None
    try:
        number = int(tokens) if tokens.isdecimal() else float(tokens)
    except ValueError:
        way_out = "For example: --keep 1024 or --keep 0.25."
        raise wrong("--keep", "must be a number of tokens or a share", f"it is {tokens!r}", way_out) from None
    with errors_of("--keep", "tokens"):
        return Keep(number, by=kinds[by or "recency"]())


def _cache(dtype: str | None) -> torch.dtype | None:
    """Return the dtype in which keys and values are kept.

    Raises:
        ArgumentError: it has not 8 bits.
    """
    from ..forms.quantized import eight_bits

    return None if dtype is None else eight_bits("--cache", dtype)


def _write(
    model: Pretrained,
    given: str | Path,
    prompt: Any,
    sampler: Sampler | Beam,
    *,
    chat: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Print the continuation of the prompt: of a beam search at its end, else piece by piece."""
    import time

    from rich.console import Console

    from ..generation import Beam

    begin = time.perf_counter()
    if isinstance(sampler, Beam):
        with Console(stderr=True).status("Searching"):
            result = model.generate(prompt, sampler, logprobs=True, **settings)[0]
        if not as_json:
            echo(result.text or "")
    else:
        result = _streamed(model, prompt, sampler, begun=_begun(model, given, chat), quiet=as_json, **settings)
    seconds = time.perf_counter() - begin
    if as_json:
        echo_json(_as_json(model, sampler, settings["seed"], result, seconds))
    count = len(result.ids)
    typer.secho(f"{count} tokens in {seconds:.1f} s, {count / seconds:.1f} tokens/s", err=True, dim=True)


def _talk(
    model: Pretrained, system: str | None, parse_special_tokens: bool, sampler: Sampler | Beam, **settings: Any
) -> None:
    """Chat on a terminal, until Ctrl-D. Ctrl-C interrupts an answer, and ends the chat at the prompt."""
    from contextlib import suppress

    with suppress(ImportError):
        import readline  # noqa: F401  # `input` edits lines with it
    messages = [] if system is None else [{"role": "system", "content": system}]
    model.conversation([*messages, {"role": "user", "content": "Hello"}])  # fails before the first input
    typer.secho(f"{model.name}. Ctrl-C interrupts an answer, Ctrl-D ends.", err=True, dim=True)
    while True:
        try:
            message = input("> ")
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
        if not message.strip():
            continue
        messages.append({"role": "user", "content": message})
        pieces: list[str] = []
        try:
            begun = model.conversation(messages, parse_special_tokens=parse_special_tokens)
            for piece in _pieces(model, begun, sampler, **settings):
                pieces.append(piece)
                echo(piece, nl=False)
        except KeyboardInterrupt:
            pass
        typer.echo()
        messages.append({"role": "assistant", "content": "".join(pieces)})


def _pieces(model: Pretrained, prompt: Any, sampler: Sampler | Beam, **settings: Any) -> Iterator[str]:
    """Return the pieces of an answer as they come; of a beam search, at its end."""
    from ..generation import Beam

    if isinstance(sampler, Beam):
        return iter([model.generate(prompt, sampler, **settings).text])
    return model.stream(prompt, sampler, **settings)


def _sampler(sampling: dict[str, Any], repetition: float, beam: int | None, length_penalty: float | None) -> Any:
    """Return the sampler of the options.

    Raises:
        ArgumentError: options that contradict each other.
    """
    from ..generation import Beam, Greedy, Sample
    from ..tensors.shapes import wrong

    if beam is None and length_penalty is not None:
        raise wrong("--length-penalty", "belongs to a search", "there is no --beam", "For example: --beam 4.")
    if beam is not None:
        if sampling:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in sampling)
            raise wrong("--beam", "belongs to a beam search", f"{named} belongs to sampling", "Give one or the other.")
        return Beam(beam, 1.0 if length_penalty is None else length_penalty, repetition)
    if sampling.get("temperature") == 0:
        raise wrong("--temperature", "must be above 0", "it is 0", "Leave it out for greedy decoding.")
    return Sample(**sampling, repetition=repetition) if sampling else Greedy(repetition)


def _given(text: str | None, file: Path | None) -> str | Path:
    """Return the prompt: a text, or the path of a WAV file."""
    from ..tensors.shapes import wrong

    if text is None and file is not None and file.suffix.lower() == ".wav":
        return file
    example = 'limelight generate "Once upon a time"'
    given = read_text(text, file, example)
    if not given:
        name = "TEXT" if text is not None else "--file"
        raise wrong(name, "must hold a prompt", "it is empty", f"For example: {example}.")
    return given


def _prompt(model: Pretrained, given: str | Path, chat: bool, system: str | None, parse_special_tokens: bool) -> Any:
    """Return the input of the model for a prompt.

    Raises:
        ArgumentError: a text for a model of speech, speech for a model of text, or more than 30 seconds of it.
    """
    from ..models import EncoderDecoder
    from ..models.sound import RATE, recording, spectrum
    from ..nn import SpectrumEmbedding
    from ..tensors.shapes import wrong

    speech = isinstance(model.network, EncoderDecoder) and isinstance(
        model.network.encoder.embedding, SpectrumEmbedding
    )
    if speech != isinstance(given, Path):
        rule, got = ("a sound", "a text is given") if speech else ("a text", f"{given} is a sound")
        way_out = "Give --file speech.wav." if speech else "Use --model whisper-tiny-en to transcribe speech."
        raise wrong("TEXT or --file", f"must hold {rule} for {model.name}", got, way_out)
    if isinstance(given, Path):
        sound = recording(given)
        if len(sound) > 30 * RATE:
            got = f"{given} is {len(sound) / RATE:.1f} seconds long"
            way_out = "Trim it: ffmpeg -i IN.wav -t 30 OUT.wav."
            raise wrong("--file", "must hold at most 30 seconds, the input of Whisper", got, way_out)
        return spectrum(sound)
    if not chat:
        return given
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": given})
    return model.conversation(messages, parse_special_tokens=parse_special_tokens)


def _begun(model: Pretrained, given: str | Path, chat: bool) -> str:
    """Return the text to print before its continuation: the prompt, on a terminal; nothing in a pipe."""
    from ..models import DecoderOnly

    continued = isinstance(given, str) and not chat and isinstance(model.network, DecoderOnly)
    return str(given) if continued and sys.stdout.isatty() else ""


def _streamed(
    model: Pretrained, prompt: Any, sampler: Sampler, *, begun: str, quiet: bool, **settings: Any
) -> Continuation:
    """Print the text piece by piece, and end the line even if it is interrupted."""
    from itertools import chain

    from ..formats.progress import counted

    pieces = model.stream(prompt, sampler, **settings)
    with counted("Reading", 1):  # a long text takes a while before the first piece comes
        rest = iter(pieces)
        first = next(rest, "")
    try:
        if begun and not quiet:
            typer.secho(shown(begun), nl=False, dim=True)
        for piece in chain([first], rest):
            if not quiet:
                echo(piece, nl=False)
    finally:
        if not quiet:
            typer.echo()
    return pieces.result


def _as_json(model: Pretrained, sampler: Sampler | Beam, seed: int | None, result: Continuation, seconds: float) -> str:
    import json
    from dataclasses import asdict

    backend = None if isinstance(model.tokenizer_or_why, str) else model.tokenizer.backend
    values = {"model": model.name, "sampler": repr(sampler), "seed": seed, **asdict(result), "seconds": seconds}
    values["tokens"] = None if backend is None else [backend.id_to_token(number) for number in result.ids]
    return json.dumps({"format": "limelight.generation", "version": 1, **values}, indent=2, ensure_ascii=False)
