"""An account of attention calls: what Limelight took over, what it left alone, and why."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Account:
    """A record of the attention calls made inside a context: taken over or left, and why; printed, a report in words.

    A graph of ``torch.compile`` runs without Python: its calls are in no account.

    Attributes:
        taken: how many calls Limelight computed, by what each asked for.
        left: how many calls it did not compute, by the reason.
        notes: what made a call dearer than it had to be, and how often.
        weights: bytes of whole attention weights that were asked for and given (``output_attentions``,
            ``need_weights``).
    """

    taken: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    weights: int = 0
    thread: int = field(default_factory=threading.get_ident)

    def __str__(self) -> str:
        lines = [f"{self.taken.total()} calls taken over, {self.left.total()} left"]
        for title, counts in (("taken", self.taken), ("left", self.left), ("note", self.notes)):
            lines += [f"  {title:5} {count:6} x  {what}" for what, count in counts.most_common()]
        if self.weights:
            lines.append(
                f"  whole weights were asked for and given, {self.weights / 2**20:,.1f} MiB of them; "
                "limelight.watching(Observe(rows=..., top=..., blocks=...)) shows them in memory that grows with the "
                "length"
            )
        if not (self.taken or self.left or self.notes):
            lines.append("  calls of a graph of torch.compile are not counted; run the model before compiling it")
        return "\n".join(lines)


# The accounts being kept now, innermost last.
_open: list[Account] = []


@contextmanager
def account() -> Iterator[Account]:
    """Keep an account of the calls that this thread makes inside.

    ::

        with account() as calls:
            model.generate(**inputs)
        print(calls)
    """
    mine = Account()
    _open.append(mine)
    try:
        yield mine
    finally:
        _open.remove(mine)


def current() -> Account | None:
    """The innermost account that this thread keeps; none in a graph, which will run without Python."""
    if torch.compiler.is_compiling() or not _open:
        return None
    thread = threading.get_ident()
    return next((one for one in reversed(_open) if one.thread == thread), None)
