"""Texts with known answers, and the measures that use them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from os import PathLike
from pathlib import Path

from ...subjects import Subject
from ..labels import Label, Reference, sample_of, tokens_of
from ..measure import Measure, Probe
from ..measures.coreference import Coreference
from ..measures.senses import Senses
from ..measures.syntax import Syntax
from ..sample import Sample
from .conllu import read_conllu
from .files import LabelError, Lines
from .gap import read_gap
from .grammar import made_sentences
from .senses import read_senses
from .winogender import read_winogender

__all__ = [
    "LabelError",
    "Lines",
    "labelled",
    "made_sentences",
    "read_conllu",
    "read_gap",
    "read_senses",
    "read_winogender",
]

FilePath = str | PathLike[str]
Texts = Iterable[tuple[Label | None, ...]]

FEWEST = 20  # cases of a relation that is counted; a claim needs more
GRAMMAR_RELATIONS = ("nsubj", "obj", "det", "amod")
LEFT_OUT = ("punct", "root", "dep", "orphan", "goeswith", "reparandum")  # no relation between two words of a sentence


def labelled(
    subject: Subject,
    *,
    conllu: FilePath | None = None,
    gap: FilePath | None = None,
    winogender: FilePath | None = None,
    senses: FilePath | None = None,
) -> list[Probe]:
    """The probes with known answers: made sentences, and those of each file.

    Each file is read through once before anything runs, so that its errors come first. The made sentences are left out
    for a model whose tokenizer cannot write them (one of another language, or of molecules); Winogender is left out for
    a causal model, because what decides comes after the pronoun. An encoder-decoder has none.

    Args:
        subject: the model.
        conllu: a treebank in CoNLL-U.
        gap: pronouns of GAP.
        winogender: sentences of Winogender.
        senses: examples of word senses.

    Raises:
        LabelError: a file cannot be read, is not of its format, or is too small.
    """
    probes: list[Probe] = []
    if subject.kind == "encoder-decoder":
        return probes
    if _writes_english(subject):
        probes.append(_probe(subject, "made sentences", made_sentences, _made_measures(subject)))
    if conllu is not None:
        with _errors_of("conllu"):
            relations = _relations(conllu)
            name, texts = _named("syntax", conllu), _single(read_conllu, conllu)
            probes.append(_probe(subject, name, texts, lambda: [Syntax(subject, relations)]))
    if gap is not None:
        with _errors_of("gap"):
            texts = _single(read_gap, gap)
            probes.append(_probe(subject, _named("GAP", gap), texts, lambda: [Coreference(subject, "GAP")]))
    if winogender is not None:
        with _errors_of("winogender"):
            name, texts = _named("Winogender", winogender), _single(read_winogender, winogender)
            probe = _probe(subject, name, texts, lambda: [Coreference(subject, "Winogender")])
        if not subject.causal:
            probes.append(probe)
    if senses is not None:
        with _errors_of("senses"):
            texts = _single(read_senses, senses)
            probes.append(_probe(subject, _named("senses", senses), texts, lambda: [Senses(subject)]))
    return probes


@contextmanager
def _errors_of(argument: str) -> Iterator[None]:
    """Inside, errors of a file begin with the argument that names it."""
    try:
        yield
    except LabelError as error:
        raise LabelError(f"`{argument}`: {error}") from error


def _made_measures(subject: Subject) -> Callable[[], list[Measure]]:
    def measures() -> list[Measure]:
        return [
            Syntax(subject, GRAMMAR_RELATIONS, "syntax, made sentences"),
            Coreference(subject, "coreference, made sentences"),
        ]

    return measures


def _named(name: str, path: FilePath) -> str:
    return f"{name} ({Path(path).name})"


def _single(read: Callable[[FilePath], Iterable[Label]], path: FilePath) -> Callable[[], Texts]:
    """The texts of a file, each with one label, from the first on at every call."""
    return lambda: ((label,) for label in read(path))


def _probe(subject: Subject, name: str, texts: Callable[[], Texts], measures: Callable[[], list[Measure]]) -> Probe:
    """A probe over labelled texts; reads all of them once, to find errors and to count tokens."""
    count = characters = 0
    tokens, read = 0, 0
    for labels in texts():
        text = next(label.text for label in labels if label is not None)
        count, characters = count + 1, characters + len(text)
        if count <= 50:  # the others are estimated
            tokens, read = tokens + len(subject.tokenize(text)), characters
    return Probe(name, lambda: _samples(subject, texts()), measures, round(tokens * characters / max(1, read)))


def _samples(subject: Subject, texts: Texts) -> Iterator[Sample]:
    """The samples of labelled texts; a group of texts lies in one half."""
    numbers = [0, 1]  # the next one of each half
    for count, labels in enumerate(texts):
        groups = [label.group for label in labels if isinstance(label, Reference) and label.group is not None]
        half = (groups[0] if groups else count) % 2
        sample = sample_of(subject, numbers[half], *labels)
        numbers[half] += 2
        if sample is not None:
            yield sample


def _relations(path: FilePath) -> tuple[str, ...]:
    """The relations of a treebank of which there are cases enough to count, the most frequent first."""
    counts = Counter(arc.relation for sentence in read_conllu(path) for arc in sentence.arcs)
    found = tuple(name for name, count in counts.most_common() if count >= FEWEST and name not in LEFT_OUT)
    if not found:
        raise LabelError(f"{path} is too small: it holds no relation {FEWEST} times. Give more sentences.")
    return found


def _writes_english(subject: Subject) -> bool:
    """Whether the tokenizer has tokens for every word of the first made sentences, none of them unknown."""
    for sentence, _ in islice(made_sentences(), 20):
        sample = sample_of(subject, 0, sentence)
        if sample is None or subject.unknown_token in sample.text.tokens or not all(tokens_of(sample, sentence.words)):
            return False
    return True
