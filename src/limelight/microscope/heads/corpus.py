"""Texts from a string, a list, files or a folder, cut into samples of so many tokens, never whole in memory."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...tensors.shapes import describe, wrong
from ...text import Text, valid_text
from ..subjects import Subject
from .sample import Sample

SUFFIXES = (".txt", ".text", ".md")
CHUNK = 1 << 16  # characters read from a file at once
FEWEST = 8  # tokens of a sample; what is shorter shows little
_ENDS = (re.compile(r"\n\s*\n"), re.compile(r"[.!?。！？][\"'’”)\]]*\s|[。！？]"), re.compile(r"\s+"))
_EXAMPLE = 'For example heads("smollm2", "novel.txt"), or heads("smollm2", ["One text.", "Another."]).'

Documents = Callable[[], Iterator[Iterator[str]]]


@dataclass(frozen=True)
class Corpus:
    """Documents that are read piece by piece, from the first on at every call.

    Args:
        name: for tables.
        documents: each an iterator of pieces of its text.
        characters: how many there are about; ``None`` where this is not known beforehand.
    """

    name: str
    documents: Documents
    characters: int | None

    def samples(self, subject: Subject, context: int) -> Iterator[Sample]:
        """The documents as samples of at most ``context`` tokens, cut where a paragraph, a sentence or a word ends."""
        number = 0
        for document in self.documents():
            for text in _cut(subject, document, context):
                if len(text) >= FEWEST:
                    yield Sample(text, number)
                    number += 1

    def tokens(self, subject: Subject) -> int | None:
        """How many tokens there are about, judged from the first 4,000 characters."""
        beginning = "".join(itertools.islice(next(self.documents(), iter(())), 1))[:4000]
        if self.characters is None or not beginning.strip():
            return None
        return max(1, round(self.characters * len(subject.tokenize(beginning)) / len(beginning)))


def corpus_of(corpus: str | Path | Iterable[str] | None) -> Corpus:
    """The corpus that an argument stands for.

    Args:
        corpus: a text; the path of a file or folder of UTF-8 text; several texts; ``None`` for the first chapters of
            Jane Austen's *Persuasion*.

    Raises:
        ArgumentError: none of these, an empty text or folder, or a file that cannot be read or is no UTF-8.
    """
    if corpus is None:
        packaged = files(__package__).joinpath("data/persuasion.txt").read_text(encoding="utf-8")
        return _texts("Persuasion, chapters 1 to 4 (Jane Austen, 1818)", [packaged])
    if isinstance(corpus, Path) or (isinstance(corpus, str) and _is_path(corpus)):
        return _files(Path(corpus))
    if isinstance(corpus, str):
        if not re.search(r"\s", corpus.strip()):
            got = f"it is {corpus[:80]!r}, one word, and no file of that name exists"
            raise wrong("corpus", "must be a text, or the path of a file or folder", got, _EXAMPLE)
        return _texts("a text", [valid_text(corpus, "corpus")])
    if isinstance(corpus, Sequence) and not isinstance(corpus, (bytes, bytearray)):
        return _texts(f"{len(corpus):,} texts", corpus)
    if isinstance(corpus, Iterable) and not isinstance(corpus, (bytes, bytearray)):
        texts = _Repeated(corpus) if isinstance(corpus, Iterator) else corpus
        return Corpus("texts", lambda: (iter((_text(text, i),)) for i, text in enumerate(texts)), None)
    raise wrong("corpus", "must be a text, several texts, or a path", f"it is {describe(corpus)}", _EXAMPLE)


class _Repeated(Iterable[str]):
    """What an iterator yields, from its first item on at every pass; items that were read are kept."""

    def __init__(self, texts: Iterator[str]) -> None:
        self.texts, self.read = texts, list[str]()

    def __iter__(self) -> Iterator[str]:
        for number in itertools.count():
            if number == len(self.read):
                try:
                    self.read.append(next(self.texts))
                except StopIteration:
                    return
            yield self.read[number]


def _is_path(text: str) -> bool:
    try:
        return len(text) < 4096 and "\n" not in text and bool(text.strip()) and Path(text).exists()
    except (OSError, ValueError):  # too long for the system, or with a null character
        return False


def _texts(name: str, texts: Sequence[Any]) -> Corpus:
    known = [_text(text, i) for i, text in enumerate(texts)]
    if not any(text.strip() for text in known):
        raise wrong("corpus", "must hold text", "there is none in it", _EXAMPLE)
    return Corpus(name, lambda: (iter((text,)) for text in known), sum(map(len, known)))


def _text(text: object, number: int) -> str:
    if not isinstance(text, str):
        raise wrong("corpus", "must hold texts", f"item {number:,} is {describe(text)}", _EXAMPLE)
    return valid_text(text, "corpus")


def _files(path: Path) -> Corpus:
    """A file, or all text files of a folder in the order of their names."""
    if not path.exists():
        raise wrong("corpus", "must be a file or folder that exists", f"{path} does not", "Check the path.")
    paths = [path]
    if path.is_dir():
        inside = (each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        paths = sorted(each for each in inside if not any(part.startswith(".") for part in each.parts))
        if not paths:
            rule = f"must hold text files ({', '.join(SUFFIXES)})"
            raise wrong("corpus", rule, f"{path} holds none", "Name a file, or rename the files.")
    size = sum(each.stat().st_size for each in paths)
    if not size:
        raise wrong("corpus", "must hold text", f"{path} is empty", "Name another file or folder.")
    return Corpus(path.name or str(path), lambda: (_pieces(each) for each in paths), size)


def _pieces(path: Path) -> Iterator[str]:
    """The text of a file, piece by piece."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while piece := file.read(CHUNK):
                yield piece
    except UnicodeDecodeError as error:
        got = f"{path} holds the byte {error.object[error.start]:#04x}, which is no UTF-8"
        raise wrong("corpus", "must be UTF-8 text", got, "Convert it: iconv -f ENCODING -t UTF-8.") from None
    except OSError as error:
        got = f"{path} cannot be read ({error.strerror})"
        raise wrong("corpus", "must be readable", got, "Check the path and its permissions.") from None


def _cut(subject: Subject, pieces: Iterator[str], context: int) -> Iterator[Text]:
    """A document as texts of at most ``context`` tokens."""
    buffer, wanted, ended = "", 8 * context, False
    while True:
        while not ended and len(buffer) < wanted:
            piece = next(pieces, None)
            ended = piece is None
            buffer += piece or ""
        buffer = buffer.lstrip("\n")
        if not buffer.strip():
            if ended:
                return
            buffer = ""
            continue
        end, text = _sample(subject, buffer[:wanted], context, whole=ended and len(buffer) <= wanted)
        yield text
        buffer = buffer[end:]


def _sample(subject: Subject, text: str, context: int, whole: bool) -> tuple[int, Text]:
    """The beginning of a text that has at most ``context`` tokens, and where it ends; ``whole`` if no more follows."""
    read = subject.tokenize(text)
    if whole and len(read) <= context:
        return len(text), read
    end = len(text)
    special = sum(read.special)
    while True:
        if len(read) > context:
            last = max(context - special - 1, 0)
            ends = [span[1] for span, special_one in zip(read.spans, read.special, strict=True) if not special_one]
            end = min(end - 1, max(ends[last], 1))
        end = _boundary(text[:end])
        read = subject.tokenize(text[:end])
        if len(read) <= context or end <= 1:
            return end, read


def _boundary(text: str) -> int:
    """The end of the last paragraph in the second half of a text; else of the last sentence or word."""
    for pattern in _ENDS:
        found = [match.end() for match in pattern.finditer(text, len(text) // 2)]
        if found:
            return found[-1]
    return len(text)
