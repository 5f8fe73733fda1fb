"""The failure of one process of several, reported once and by its rank.

When a rank fails or is killed, the others fail in the collective operation that waits for it: at once where its
connection is closed (gloo), or after the timeout of the process group. Each then writes into the store of the group why
it ended, and one of them reports the cause; a rank that writes nothing was killed or hangs.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from ..formats.interruption import stop_requested
from ..tensors.shapes import ArgumentError

GRACE = 5.0  # seconds in which ranks that run write why they ended
LOST = "lost"  # written by a rank whose connection to another one failed
WAITS = "waits"  # written for a rank that runs, and waits in a collective operation
CONNECTION = ("gloo", "nccl", "connection", "timed out", "timeout", "socket", "peer")


class RankError(RuntimeError):
    """A run of several processes ended since one of them did.

    Args:
        message: names the rank and the cause.
        rank: the rank that failed.
        reports: whether this process is the one that reports it.
    """

    def __init__(self, message: str, rank: int, reports: bool) -> None:
        super().__init__(message)
        self.rank, self.reports = rank, reports

    @property
    def unexpected(self) -> BaseException | None:
        """The exception of this process where a user cannot have expected it, so that its traceback is of use."""
        cause = self.__cause__
        if cause is None or _is_connection(cause) or _is_memory(cause) or isinstance(cause, (ArgumentError, OSError)):
            return None
        return cause


class _Board(NamedTuple):
    """Why ranks ended, in the store by which the processes found each other."""

    store: Store
    rank: int
    ranks: int

    def write(self, why: str) -> None:
        self.store.set(f"ended/{self.rank}", why)
        self.store.set("ended", "yes")

    def read(self) -> dict[int, str]:
        """Return what was written, by rank, as soon as all ranks have written or `GRACE` has passed."""
        end, found = time.monotonic() + GRACE, dict[int, str]()
        while len(found) < self.ranks and time.monotonic() < end:
            for rank in range(self.ranks):
                if rank not in found and self.store.check([f"ended/{rank}"]):
                    found[rank] = self.store.get(f"ended/{rank}").decode()
            time.sleep(0.05)
        return found

    def watch(self, over: threading.Event) -> None:
        """Write that this rank runs as soon as another one has ended, and end it if it waits for that one forever."""
        while not over.wait(1.0):
            try:
                if not self.store.check(["ended"]):
                    continue
                self.store.compare_set(f"ended/{self.rank}", "", WAITS)
            except (RuntimeError, OSError):  # the store ended: so will the collective operations
                return
            if not over.wait(2 * GRACE):
                os._exit(1)


@contextmanager
def failures_by_rank() -> Iterator[None]:
    """Turn the failure of a process of several into a `RankError` in each, one of which is to be reported.

    A process by itself keeps its exceptions, as do processes that found each other without an address
    (``MASTER_ADDR``, ``MASTER_PORT``). An error that all ranks have in common stays what it is on rank 0. A process
    that still waits for the one that failed 10 seconds later is ended.

    Raises:
        RankError: this process or another one failed.
    """
    boards = _connected()
    if boards is None:
        yield
        return
    board, watched = boards
    over = threading.Event()
    threading.Thread(target=watched.watch, args=(over,), daemon=True).start()
    try:
        yield
    except Exception as error:
        over.set()
        with stop_requested():  # torchrun ends the others by SIGTERM; they still write
            ended = _ended(board, error)
        if ended is error:
            raise
        raise ended from error
    finally:
        over.set()


def _ended(board: _Board, error: Exception) -> Exception:
    """Write why this rank ended, and return the error for it, given what the others have written."""
    own = LOST if _is_connection(error) else f"{type(error).__name__}: {error}"
    try:
        board.write(own)
        found = board.read()
    except (RuntimeError, OSError):  # the store ended with the process that held it
        found = {board.rank: own}
    causes = {one: why for one, why in found.items() if why not in (LOST, WAITS)}
    if len(causes) == board.ranks and len(set(causes.values())) == 1:
        return error if board.rank == 0 else RankError(own, 0, reports=False)
    return _cause(board.rank, board.ranks, found, causes)


def _cause(rank: int, ranks: int, found: dict[int, str], causes: dict[int, str]) -> RankError:
    """Return the error of a rank, given what each has written."""
    if causes:
        first = min(causes)
        why = f"failed with {causes[first].rstrip('.')}."
        if "memory" in why.lower():
            why += " Lower run.batch_tokens, or raise run.shard, run.context or run.tensor with more processes."
        return RankError(f"rank {first} of {ranks} {why}", first, reports=rank == first)
    lost = [one for one, why in found.items() if why == LOST]
    silent = [one for one in range(ranks) if one not in found]
    waiting = [one for one, why in found.items() if why == WAITS]
    why = "ended without a message (was it killed, for example for want of memory?) or does not respond"
    if not silent:  # all run
        why = "did not answer the others within run.timeout, or the network between them failed"
    first, *others = silent or waiting or [rank]
    more = f", and so did ranks {', '.join(map(str, others))}" if others else ""
    return RankError(f"rank {first} of {ranks} {why}{more}.", first, reports=rank == min(lost))


def _is_connection(error: BaseException) -> bool:
    """Whether an exception says that another process did not answer."""
    if _is_memory(error):
        return False
    if isinstance(error, dist.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error).lower() for word in CONNECTION)


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "memory" in str(error).lower()


_guards = itertools.count()  # all ranks guard the same steps in the same order


def _connected() -> tuple[_Board, _Board] | None:
    """Connect to the store twice, for two threads; ``None`` where there is one process, or no address of a store.

    Each guarded step of each start of the processes by torchrun has its own part of the store.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1 or "MASTER_PORT" not in os.environ:
        return None
    host, port = os.environ.get("MASTER_ADDR", "localhost"), int(os.environ["MASTER_PORT"])
    part = f"limelight/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{next(_guards)}"
    try:
        first, second = (TCPStore(host, port, is_master=False, timeout=timedelta(seconds=10)) for _ in range(2))
    except (RuntimeError, OSError):  # the processes found each other in another way
        return None
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return _Board(PrefixStore(part, first), rank, ranks), _Board(PrefixStore(part, second), rank, ranks)
