"""Text files of labels, read line by line, and their errors: the file, the line, the rule and the way out."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from ....tensors.shapes import ArgumentError

LONGEST_LINE = 1 << 20  # bytes; a line of a corpus has a thousandth of it


class LabelError(ArgumentError):
    """A file of labelled texts is missing or not of its format: the file, the line, the rule, the way out."""


class Lines:
    """The lines of a UTF-8 file, one at a time, and errors that name the last one read.

    Args:
        path: the file.
        format: what it must be, in the words of messages: ``"CoNLL-U"``.
        way_out: the sentence that ends every message.
    """

    def __init__(self, path: str | PathLike[str], format: str, way_out: str) -> None:
        self.path, self.format, self.way_out = Path(path), format, way_out
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        """Each line without its end.

        Raises:
            LabelError: the file cannot be read, or a line is not UTF-8 or longer than 2^20 bytes.
        """
        self.number = 0
        try:
            with self.path.open("rb") as file:
                while line := file.readline(LONGEST_LINE + 1):
                    self.number += 1
                    if len(line) > LONGEST_LINE:
                        raise self.error(f"has more than {LONGEST_LINE:,} bytes")
                    yield line.decode("utf-8-sig" if self.number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise self.error(f"is not UTF-8 ({error.reason} at byte {error.start + 1})") from None
        except OSError as error:
            raise LabelError(f"{self.path} cannot be read: {error.strerror or error}. {self.way_out}") from error

    def error(self, what: str, line: int | None = None) -> LabelError:
        """The error about a line, by default the last one read; ``what`` it has or is, as in ``"has 7 columns"``."""
        return LabelError(f"{self.path} is not {self.format}: line {line or self.number:,} {what}. {self.way_out}")

    def empty(self, what: str) -> LabelError:
        """The error for a file that holds none of ``what``."""
        return LabelError(f"{self.path} is not {self.format}: it holds no {what}. {self.way_out}")
