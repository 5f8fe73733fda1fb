"""The start of a run: the data, a tokenizer trained on it, and an initialised model."""

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
from .tokenizing import special_token_ids, trained

# Families that can be trained: those whose published loss is next-token prediction, and load balancing of routers.
FAMILIES_OF = {
    "language": ("llama", "gpt2", "mistral", "mixtral", "qwen3", "gemma2"),
    "translation": ("marian", "bart", "t5"),
}
DERIVED_KEYS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "architectures")


class PreparedData(NamedTuple):
    """The tokenized data of a run.

    Args:
        tokenizer: the tokenizer, trained on the training data.
        special_token_ids: ids of its special tokens, by their published names.
        train: the training data.
        evaluation: the held-out data; ``None`` where nothing is held out.
        characters: number of characters of the held-out documents or targets.
        held_out: the held-out documents, each a tuple of one, or pairs.
    """

    tokenizer: Tokenizer
    special_token_ids: Mapping[str, int]
    train: Corpus
    evaluation: Corpus | None
    characters: int
    held_out: list[tuple[str, ...]]


def make_data(settings: Settings, tokenizer_file: Path | None = None) -> PreparedData:
    """Read the data, and train the tokenizer unless ``tokenizer_file`` holds one.

    Raises:
        ArgumentError: a file cannot be read or holds too little.
    """
    task, data, run = settings.task, settings.data, settings.run
    training = _read("data.train", data.train, settings)
    if data.evaluation is not None:
        evaluated = _read("data.evaluation", data.evaluation, settings)
        if not evaluated:
            got = f"{data.evaluation} does not"
            way_out = "Name another file, or remove the key to hold out a share of data.train."
            raise wrong("data.evaluation", "must hold text", got, way_out)
    else:
        chosen = held_out(len(training), data.held_out)
        evaluated = [one for one, out in zip(training, chosen, strict=True) if out]
        training = [one for one, out in zip(training, chosen, strict=True) if not out]
    if not training:
        raise wrong("data.train", "must hold text to train on", f"{data.train} does not", "Name another.")
    if tokenizer_file is not None:
        tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(tokenizer_file)))
    else:
        tokenizer = trained(settings.tokenizer.kind, settings.tokenizer.vocab_size, _all_texts(training), task=task)
    special = special_token_ids(task=task)
    start, end = special["bos_token_id"], special["eos_token_id"]
    sizes = {"length": run.max_length, "tokens": run.batch_tokens, "seed": run.seed}

    def corpus(part: list[tuple[str, ...]]) -> tuple[Corpus, list[tuple[str, ...]]]:
        if task == "language":
            return texts_of([document for (document,) in part], tokenizer, start=start, end=end, **sizes), part
        pairs, kept = pairs_of([(source, target) for source, target in part], tokenizer, start=start, **sizes)
        return pairs, list(kept)

    train, _ = corpus(training)
    evaluation, evaluated = corpus(evaluated) if evaluated else (None, [])
    characters = sum(len(one[-1]) for one in evaluated)
    return PreparedData(tokenizer, special, train, evaluation, characters, evaluated)


def _all_texts(training: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield every text that the tokenizer is trained on, with a progress bar where that takes long."""
    with counted("Training the tokenizer", len(training)) as report:
        for done, texts in enumerate(training, 1):
            yield from texts
            report(done)


def _read(key: str, path: Path, settings: Settings) -> list[tuple[str, ...]]:
    """Read the documents of a file, each as a tuple of one, or its pairs."""
    try:
        if settings.task == "translation":
            return list(pairs_in(path))
        return [(document,) for document in documents_in(path, settings.data.separator)]
    except UnicodeDecodeError as error:
        got = f"byte {error.start:,} of {path} is {error.object[error.start]:#04x}"
        raise wrong(key, "must be UTF-8 text", got, "Convert it: iconv -f ENCODING -t UTF-8.") from None
    except OSError as error:
        content = "a text" if settings.task == "language" else "lines of a source, a tab and its translation"
        way_out = f"Name your own: --set {key}=FILE ({content}, UTF-8)."
        raise wrong(key, "must be a file that can be read", f"{path}: {error.strerror}", way_out) from None


class _ModelTable(Published):
    """The ``[model]`` table of the settings, read as a config.json is; errors name its keys."""

    def refused(self, key: str, rule: str) -> CheckpointError:
        """Return the error about the value of a key."""
        way_out = f"Correct it under [model], or with --set model.{key}=VALUE."
        return CheckpointError(str(wrong(f"model.{key}", f"must be {rule}", f"it is {self.get(key)!r}", way_out)))


def make_config(settings: Settings, vocabulary: int, special: Mapping[str, int]) -> Config:
    """Build the configuration of the model.

    Args:
        settings: the settings of the run.
        vocabulary: the vocabulary size of the tokenizer.
        special: ids of its special tokens, by their published names.

    Raises:
        ArgumentError: the family cannot be trained for this task, a key is unknown to the family or a value invalid, or
            ``run.max_length`` exceeds the model's positions.
    """
    kind, families = settings.model.get("model_type"), FAMILIES_OF[settings.task]
    if kind not in families:
        raise wrong(
            "model.model_type",
            f"must be one of {', '.join(families)} for the task {settings.task!r}",
            f"it is {kind!r}",
            "Other families run, but cannot be trained.",
        )
    values = RecordingDict({**settings.model, "vocab_size": vocabulary, **special})
    config = FAMILIES[kind].configure(_ModelTable(Path("[model]"), values))
    unknown = sorted({*settings.model} - values.read - {"model_type"})
    follows = sorted({*settings.model} & {*DERIVED_KEYS})
    if unknown or follows:
        known = ", ".join(sorted(values.read - {*DERIVED_KEYS}))
        got = f"it has {', '.join(unknown or follows)}"
        raise wrong("model", f"may have the keys {known} in the family {kind}", got, "Correct or remove it.")
    length = settings.run.max_length
    positions = min((one.limit for one in (config, config.encoder) if one and one.limit), default=length)
    if length > positions:
        rule = f"must be no more than the model's {positions} positions"
        raise wrong("run.max_length", rule, f"it is {length}", f"Use run.max_length={positions}.")
    return config


def make_network(config: Config, task: str) -> Stack:
    """Build the model with its published initialisation, drawn from torch's global generator."""
    network = FAMILIES[config.family].shape(config)
    if config.family == "t5":
        FanIn(config.width)(network)
    elif task == "translation":
        Xavier()(network)
    else:
        Normal(layers=config.layers)(network)
    return network
