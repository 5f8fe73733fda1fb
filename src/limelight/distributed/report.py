"""What each rank computes, sends and receives in a call under context parallelism, by count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan
from .runs import keys_moved

MAX_ROWS = 16  # ranks listed one by one; of more, the extremes


@dataclass(frozen=True)
class ContextReport:
    """What each rank of a call computes, sends and receives; printed, a table with a line for each rank.

    Numbers of bytes are those of the forward pass. The backward pass returns a gradient for each key and value that
    was sent: as many bytes, the other way.

    Args:
        rank: the rank that made the report.
        tokens: queries that each rank holds, of one batch row.
        pairs: pairs of query and key that each rank computes, over all batch rows and query heads.
        keys_held: keys that each rank holds, of one batch row.
        keys_sent: keys that each rank sends to others; one that two ranks need is counted twice.
        keys_received: keys that each rank gets from others.
        key_bytes: bytes of one key with its value, over all batch rows and heads.
        exchanges: exchanges in which a call gets its keys, each of some of the heads.
        gathers: whether keys travel by an all-gather (`Plan.gathers`) instead of an uneven all-to-all. Each rank then
            sends and receives as many as the one that holds most, for each other rank.
    """

    rank: int
    tokens: tuple[int, ...]
    pairs: tuple[int, ...]
    keys_held: tuple[int, ...]
    keys_sent: tuple[int, ...]
    keys_received: tuple[int, ...]
    key_bytes: int
    exchanges: int = 1
    gathers: bool = False

    @property
    def bytes_sent(self) -> tuple[int, ...]:
        """Bytes that each rank sends to others."""
        return tuple(self.key_bytes * n for n in self.keys_sent)

    @property
    def bytes_received(self) -> tuple[int, ...]:
        """Bytes that each rank gets from others."""
        return tuple(self.key_bytes * n for n in self.keys_received)

    @property
    def bytes_of_all_gather(self) -> tuple[int, ...]:
        """Bytes that each rank would get if all keys and values were gathered, or passed around in a ring."""
        return tuple(self.key_bytes * (sum(self.keys_held) - n) for n in self.keys_held)

    @property
    def imbalance(self) -> float:
        """The pairs of the fullest rank, as a multiple of the average; 1 where there are none."""
        total = sum(self.pairs)
        return max(self.pairs) * len(self.pairs) / total if total else 1.0

    def __str__(self) -> str:
        ranks = range(len(self.tokens))
        lines = [
            f"context parallel over {len(ranks)} ranks by {'all-gather' if self.gathers else 'all-to-all'},"
            f" {sum(self.tokens):,} tokens; this is rank {self.rank};"
            f" pairs of the fullest rank over the average: {self.imbalance:.2f}",
            f"{'rank':>10}{'tokens':>12}{'pairs':>20}{'MiB sent':>12}{'received':>12}{'all-gather':>12}",
        ]
        if self.exchanges > 1:
            lines[0] += f"; in {self.exchanges} exchanges of some heads each"
        columns = self.tokens, self.pairs, self.bytes_sent, self.bytes_received, self.bytes_of_all_gather
        if len(ranks) <= MAX_ROWS:
            lines += [_line(f"{rank}", [column[rank] for column in columns]) for rank in ranks]
        else:
            lines += [
                _line(f"{self.rank}", [column[self.rank] for column in columns]),
                _line("smallest", [min(column) for column in columns]),
                _line("largest", [max(column) for column in columns]),
            ]
        return "\n".join(lines)


def _line(name: str, numbers: Sequence[int]) -> str:
    tokens, pairs, *sizes = numbers
    return f"{name:>10}{tokens:>12,}{pairs:>20,}" + "".join(f"{size / 2**20:>12,.2f}" for size in sizes)


def keys_planned(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many keys each rank sends and receives by a plan: those of `keys_moved`, or of an all-gather."""
    if not plan.gathers:
        return keys_moved(plan.needs, plan.held)
    every = ((len(plan.held) - 1) * plan.largest,) * len(plan.held)
    return every, every
