"""What a run begins with: data, a tokenizer trained on it, a model with its first weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import tokenizers

from ..formats.errors import CheckpointError
from ..formats.progress import counted
from ..models import Config, Stack
from ..models.families import FAMILIES, Published
from ..models.families.published import RecordingDict
from ..nn import FanIn, Normal, Xavier
from ..tensors.shapes import wrong
from ..text import Tokenizer
from .data import Corpus, documents_in, held_out, pairs_in, pairs_of, texts_of
from .settings import Settings
from .tokenizing import marks_of, trained

# Families that are trained: those whose published loss is that of the next token, and of routers where it has any.
FAMILIES_OF = {
    "language": ("llama", "gpt2", "mistral", "mixtral", "qwen3", "gemma2"),
    "translation": ("marian", "bart", "t5"),
}
FOLLOWS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "architectures")


class Made(NamedTuple):
    """What a run begins with.

    Args:
        tokenizer: trained on the data.
        marks: ids of its marks.
        train: what is learned from.
        evaluation: what is not; ``None`` where nothing is held out.
        characters: of the evaluated documents or targets.
        evaluated: those documents, each alone, or pairs.
    """

    tokenizer: Tokenizer
    marks: Mapping[str, int]
    train: Corpus
    evaluation: Corpus | None
    characters: int
    evaluated: list[tuple[str, ...]]


def make_data(settings: Settings, tokenizer_file: Path | None = None) -> Made:
    """Read the data, and train the tokenizer unless there is a file of it already.

    Raises:
        ArgumentError: no data, or not enough of it.
    """
    task, data, run = settings.task, settings.data, settings.run
    learned = _read("data.train", data.train, settings)
    if data.evaluation is not None:
        evaluated = _read("data.evaluation", data.evaluation, settings)
        if not evaluated:
            got, way_out = f"{data.evaluation} does not", "Name another, or remove it: a share is held out."
            raise wrong("data.evaluation", "must hold text", got, way_out)
    else:
        kept = held_out(len(learned), data.held_out)
        evaluated = [one for one, out in zip(learned, kept, strict=True) if out]
        learned = [one for one, out in zip(learned, kept, strict=True) if not out]
    if not learned:
        raise wrong("data.train", "must hold something to learn from", f"{data.train} does not", "Name another.")
    if tokenizer_file is not None:
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(tokenizer_file)))
    else:
        tokenizer = trained(settings.tokenizer.kind, settings.tokenizer.size, _each(learned), task=task)
    marks = marks_of(task=task)
    start, end = marks["bos_token_id"], marks["eos_token_id"]
    sizes = {"length": run.length, "tokens": run.tokens, "seed": run.seed}

    def corpus(part: list[tuple[str, ...]]) -> tuple[Corpus, list[tuple[str, ...]]]:
        if task == "language":
            return texts_of([document for (document,) in part], tokenizer, start=start, end=end, **sizes), part
        pairs, kept = pairs_of([(source, target) for source, target in part], tokenizer, start=start, **sizes)
        return pairs, list(kept)

    train, _ = corpus(learned)
    evaluation, evaluated = corpus(evaluated) if evaluated else (None, [])
    characters = sum(len(one[-1]) for one in evaluated)
    return Made(tokenizer, marks, train, evaluation, characters, evaluated)


def _each(learned: list[tuple[str, ...]]) -> Iterator[str]:
    """Every text that a tokenizer is trained on, with a bar where that takes long."""
    with counted("Training the tokenizer", len(learned)) as report:
        for done, texts in enumerate(learned, 1):
            yield from texts
            report(done)


def _read(key: str, path: Path, settings: Settings) -> list[tuple[str, ...]]:
    """The documents of a file, each alone, or its pairs."""
    try:
        if settings.task == "translation":
            return list(pairs_in(path))
        return [(document,) for document in documents_in(path, settings.data.separator)]
    except UnicodeDecodeError as error:
        got = f"byte {error.start:,} of {path} is {error.object[error.start]:#04x}"
        raise wrong(key, "must be UTF-8 text", got, "Convert it: iconv -f ENCODING -t UTF-8.") from None
    except OSError as error:
        what = "a text" if settings.task == "language" else "lines of a source, a tab and its translation"
        way_out = f"Name one of yours: --set {key}=FILE ({what}, UTF-8)."
        raise wrong(key, "must be a file that can be read", f"{path}: {error.strerror}", way_out) from None


class _Settings(Published):
    """The ``[model]`` of a run's settings, read as a config.json is; errors name its keys."""

    def refused(self, key: str, rule: str) -> CheckpointError:
        """The error about one value."""
        way_out = f"Correct it under [model], or with --set model.{key}=VALUE."
        return CheckpointError(str(wrong(f"model.{key}", f"must be {rule}", f"it is {self.get(key)!r}", way_out)))


def make_config(settings: Settings, vocabulary: int, marks: Mapping[str, int]) -> Config:
    """The configuration of the model.

    Args:
        settings: of the run.
        vocabulary: the size of the tokenizer.
        marks: ids of its special tokens.

    Raises:
        ArgumentError: a family that is not trained for this task, a key that the family does not have, a value that it
            refuses, a ``run.length`` beyond its positions.
    """
    kind, families = settings.model.get("model_type"), FAMILIES_OF[settings.task]
    if kind not in families:
        raise wrong(
            "model.model_type",
            f"must be one of {', '.join(families)} for the task {settings.task!r}",
            f"it is {kind!r}",
            "Other families run, but are not trained here.",
        )
    values = RecordingDict({**settings.model, "vocab_size": vocabulary, **marks})
    config = FAMILIES[kind].configure(_Settings(Path("[model]"), values))
    unknown = sorted({*settings.model} - values.read - {"model_type"})
    follows = sorted({*settings.model} & {*FOLLOWS})
    if unknown or follows:
        known = ", ".join(sorted(values.read - {*FOLLOWS}))
        got = f"it has {', '.join(unknown or follows)}"
        raise wrong("model", f"may have the keys {known} in the family {kind}", got, "Correct or remove it.")
    positions = min((one.limit for one in (config, config.encoder) if one and one.limit), default=settings.run.length)
    if settings.run.length > positions:
        got = f"it is {settings.run.length}"
        raise wrong("run.length", f"must be no more than the model's {positions} positions", got, "Change one of them.")
    return config


def make_network(config: Config, task: str) -> Stack:
    """The model with its first weights, as published, drawn from torch's generator."""
    network = FAMILIES[config.family].shape(config)
    if config.family == "t5":
        FanIn(config.width)(network)
    elif task == "translation":
        Xavier()(network)
    else:
        Normal(layers=config.layers)(network)
    return network
