"""`ContextParallel`: a text whose tokens lie on several ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from ..forms.coordinates import Coordinates
from ..forms.layouts import Aligned, KeyMask, Layout
from ..forms.lowering import Lowered, lower
from ..forms.observations import Observations
from ..forms.patterns import Pattern
from ..tensors.shapes import describe, read_shapes, whole_number, wrong
from .calls import OwnCall, exchanges, own_calls, own_settings
from .dealing import deal, pairs_of_queries, rows_of
from .exchange import exchanged, unset
from .observing import block_sums, in_whole, joined
from .plan import GRID, Plan, make_plan
from .report import ContextReport, keys_planned
from .runs import Runs, checked_runs, count, united

MAX_PLANS = 64  # plans kept of a layout


@dataclass(frozen=True, eq=False, repr=False)
class ContextParallel(Layout):
    """A layout whose tokens lie on the ranks of a process group: each rank holds runs of consecutive positions.

    Query, key and value of a call hold a rank's own tokens, in the order of its runs. Every rank of the group makes the
    same calls. In each call a rank gets the keys that its queries see, and no others, from the ranks that hold them,
    by one uneven all-to-all, or all keys by an all-gather where the ranks need nearly all (`Plan.gathers`); then it
    makes an ordinary call. Autograd includes both. Which keys these are follows from pattern and runs, on every rank,
    without communication. So every pattern, score rule, sink, dropout and derivative means what it means in one
    process, and a row of the output is the same there, to the bit on CPUs where the runs are those of `balanced` (but
    for texts that begin at another token in each batch row, as with padding at the left).

    - ``pattern`` describes the whole text, tensors in it included. It must be the same on every rank.
    - The tensor of a `limelight.Bias` has a row for each own query and a column for each token of the whole text.
    - The gradient of what all ranks share (a sink, slopes, a table, parameters) is each rank's part: add them up over
      the ranks, as for parameters.
    - Dropout drops the same weights and, in a model, the same features as in one process where every rank gets the same
      seed, but for features in compiled layers. Each rank draws the numbers of all features of the text.
    - Observed rows are those of own queries, and keys in them are numbered in the whole text; ``received`` is summed
      over all ranks for the own keys. ``features`` has a row for each own key. ``pairs`` are own
      queries and keys of the whole text; ``blocks`` are those of the whole text, on every rank.
    - A model in which something other than attention reads other tokens (a recurrence, a convolution, a class head,
      experts that may be full) refuses the layout. `limelight.nn.balance_loss` takes `total` of the layout.

    ::

        spread = ContextParallel.balanced(mesh["context"], length, patterns=[Causal()])
        tokens = spread.mine(tokens)  # (B, L) -> (B, tokens of this rank)
        states = network(tokens, layout=spread).states

    Args:
        group: a `torch.distributed.ProcessGroup`, or a `DeviceMesh` of one dimension; gloo or NCCL.
        runs: for each rank the tokens that it holds, ``((first, last), ...)`` ascending, the last one excluded. All
            ranks together hold each token of the text once.
        of: documents and padding of the whole text: `Packed`, `Padded`, `Aligned`, `KeyMask`; ``None`` is
            ``Aligned()``. Its tensors are not modified while the layout is used.
        key_runs: the keys that each rank holds, where they are not the queries' (cross-attention).
        heads_at_once: key heads, with their query heads, that a call exchanges and computes at a time, so that the
            gathered keys of so many are in memory, and those of the next, which are sent meanwhile; ``None`` for all.
            Outputs and gradients of query, key and value have the same bits, but for gradients by reduce-scatter. Where
            gradients are recorded, gathered keys are kept for the backward pass. Under dropout it is as ``None``.
    """

    group: Any
    runs: tuple[Runs, ...]
    of: Layout | None = None
    key_runs: tuple[Runs, ...] | None = None
    heads_at_once: int | None = None
    spread: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "group", _group_of(self.group))
        size = dist.get_world_size(self.group)
        if self.of is not None and (not isinstance(self.of, Layout) or self.of.spread or self.of.paged):
            got = f"it is {describe(self.of)}"
            raise wrong("of", "must be a Layout of the whole text", got, "See limelight.forms.layouts.")
        for name in ("runs", "key_runs"):
            runs = getattr(self, name)
            if runs is not None:
                object.__setattr__(self, name, checked_runs(name, runs, size))
        if self.heads_at_once is not None:
            whole_number("heads_at_once", self.heads_at_once, at_least=1)

    @classmethod
    def balanced(
        cls,
        group: Any,
        length: int,
        *,
        patterns: Sequence[Pattern | None] = (None,),
        layout: Layout | None = None,
        heads_at_once: int | None = None,
    ) -> ContextParallel:
        """The layout of a text of ``length`` tokens, dealt so that all ranks have about as much to compute.

        Args:
            group: a process group, or a mesh of one dimension.
            length: tokens of the whole text.
            patterns: of all layers of the model (`limelight.distributed.patterns_of`), each as often as it occurs.
            layout: documents and padding of the whole text.
            heads_at_once: key heads that a call exchanges at a time; ``None`` for all.

        Raises:
            ArgumentError: the length is no whole number, or does not fit the layout.
        """
        whole_number("length", length, at_least=0)
        group = _group_of(group)
        if layout is not None:
            layout.check(rows_of(layout), length, length)
        return cls(group, deal(length, dist.get_world_size(group), patterns, layout), layout, None, heads_at_once)

    # --- A rank's tokens ----------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return dist.get_rank(self.group)

    @property
    def length(self) -> int:
        """Tokens of the whole text."""
        return sum(map(count, self.runs))

    @property
    def source_runs(self) -> tuple[Runs, ...]:
        """For each rank the keys that it holds: ``key_runs``, or the ``runs`` where these are left out."""
        return self.key_runs or self.runs

    @property
    def source_length(self) -> int:
        """The number of keys of the whole text."""
        return sum(map(count, self.source_runs))

    @cached_property
    def index(self) -> Tensor:
        """``(n,)`` int64: the indices in the whole text of the tokens that this rank holds."""
        return _index(self.runs[self.rank])

    @property
    def positions(self) -> Tensor:
        """``(1 | B, n)`` int64: the positions of the tokens that this rank holds, each in its document; 0 for padding.

        Models of transformers get them as ``position_ids``.
        """
        sizes = rows_of(self.of), self.length, self.source_length
        at = (self.of or Aligned()).coordinates(*sizes, torch.device("cpu"))
        return at.query_position.where(at.query_exists, 0).index_select(1, self.index)

    def mine(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """This rank's tokens of a tensor of the whole text.

        Args:
            tensor: of any shape, with the whole text along ``dim``.
            dim: the dimension of the tokens.
        """
        if tensor.shape[dim] != self.length:
            got = f"its shape is {tuple(tensor.shape)}, and the text has {self.length} tokens"
            raise wrong(
                "tensor", f"must hold the whole text along dimension {dim}", got, "Give the dimension as `dim`."
            )
        return tensor.index_select(dim, self.index.to(tensor.device))

    def whole(self, tensor: Tensor, dim: int = 1, first: int = 0) -> Tensor:
        """The tensor of the whole text, on every rank, from each rank's own tokens. Every rank calls it.

        The gradient of what every rank computes from it is summed over the ranks.

        Args:
            tensor: a rank's own tokens along ``dim``.
            dim: the dimension of the tokens.
            first: the token of the text from which on they are wanted.
        """
        moved, held = tensor.movedim(dim, 0), count(self.runs[self.rank])
        if moved.shape[0] != held:
            got = f"its shape is {tuple(tensor.shape)}, and this rank holds {held} tokens"
            raise wrong("tensor", f"must hold the rank's tokens along dimension {dim}", got, "Use `mine` before.")
        everything = united([(first, self.length)])
        needs, pieces = (everything,) * len(self.runs), tuple((*run, 0) for run in everything)
        plan = Plan(self.rank, needs, self.runs, Aligned(), pieces, self.length - first)
        flat = moved.reshape(1, 1, moved.shape[0], math.prod(moved.shape[1:]))
        gathered, _ = exchanged(flat, flat[..., :0], plan, self.group)
        return gathered.reshape(self.length - first, *moved.shape[1:]).movedim(0, dim)

    def total(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all ranks, on every rank, without a gradient. Every rank calls it."""
        summed = tensor.detach().clone()
        dist.all_reduce(summed, group=self.group)
        return summed

    # --- As a layout --------------------------------------------------------------------------------------------------

    @property
    def documents(self) -> int:
        """The number of documents of each batch row."""
        return 1 if self.of is None else self.of.documents

    def check(self, B: int, Lq: int, Lk: int) -> None:
        for name, runs, size in (("query", self.runs, Lq), ("key", self.source_runs, Lk)):
            held = count(runs[self.rank])
            if size != held:
                raise wrong(
                    "layout",
                    f"must fit the {name}: rank {self.rank} holds {held:,} of its {sum(map(count, runs)):,} tokens",
                    f"the {name} has {size:,}",
                    "Take them by `layout.mine(tensor)`.",
                )
        if self.of is not None:
            self.of.check(B, self.length, self.source_length)

    def coordinates(self, B: int, Lq: int, Lk: int, device: torch.device) -> Coordinates:
        whole = (self.of or Aligned()).coordinates(B, self.length, self.source_length, device)
        query, key = self.index.to(device), _index(self.source_runs[self.rank]).to(device)
        return Coordinates(*[x.index_select(1, key if n % 2 else query) for n, x in enumerate(whole)])

    def key_ranges(self, B: int, Lq: int, Lk: int) -> None:
        return None

    @property
    def uniform_over_batch(self) -> bool:
        return self.of is None or self.of.uniform_over_batch

    def text_lengths(self, positions: Tensor) -> Tensor:
        whole = (self.of or Aligned()).coordinates(
            max(1, len(positions)), self.length, self.source_length, positions.device
        )
        return super().text_lengths(whole.query_position.where(whole.query_exists, 0))

    def own_tokens(self, make: Callable[[int], Tensor], length: int) -> Tensor:
        return self.mine(make(self.length))

    def of_whole(self, L: int) -> tuple[Layout | None, int]:
        return self.of, self.length

    def cross(self, source: Layout) -> Layout:
        if not isinstance(source, ContextParallel) or source.group is not self.group:
            got = f"that of the source is {source!r}"
            raise wrong(
                "layout", "must be ContextParallel over the same group for source and tokens", got, "Spread both."
            )
        of: Layout | None
        if self.documents > 1 or source.documents > 1:
            of = (self.of or Aligned(0)).cross(source.of or Aligned(0))
        elif (of := source.of) is not None:
            at = of.coordinates(rows_of(of), source.length, source.length, torch.device("cpu"))
            of = KeyMask(at.query_exists & at.key_exists)
        return replace(self, of=of, key_runs=source.runs)

    def select(self, rows: Tensor) -> ContextParallel:
        return self if self.of is None else replace(self, of=self.of.select(rows))

    # --- Reports ------------------------------------------------------------------------------------------------------

    def explain(
        self,
        pattern: Pattern | None = None,
        *,
        batch: int = 1,
        heads: int = 1,
        key_value_heads: int | None = None,
        width: int = 128,
        value_width: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        contiguous: bool = False,
        dropout: bool = False,
    ) -> ContextReport:
        """What each rank computes, sends and receives in a call of these sizes, by count, without communication.

        `limelight.explain` with this layout shows the same for its tensors.

        Args:
            pattern: of the call; ``None`` is ``Full()``.
            batch: batch rows.
            heads: query heads.
            key_value_heads: heads of keys and values; ``None`` for as many as query heads.
            width: of a key.
            value_width: of a value; ``None`` for that of a key.
            dtype: of keys and values.
            contiguous: whether the call has score rules of the distance (`plan`).
            dropout: whether the call has dropout.
        """
        plan = self.plan(pattern, batch, heads, contiguous=contiguous or dropout)
        numbers = (key_value_heads or heads) * (width + (width if value_width is None else value_width))
        times = exchanges(key_value_heads or heads, self.heads_at_once, dropout)
        return self._report(plan, pattern, batch, heads, batch * numbers * dtype.itemsize, times)

    def explained(
        self, query: Tensor, key: Tensor, value: Tensor, settings: Any
    ) -> tuple[Tensor, Tensor, Any, ContextReport]:
        plan = self._plan_of(query, key, value, settings)
        size = sum(len(x) * x.shape[1] * x.shape[3] * x.dtype.itemsize for x in (key, value))
        times = exchanges(key.shape[1], self.heads_at_once, bool(settings.dropout))
        report = self._report(plan, settings.pattern, len(query), query.shape[1], size, times)
        own = own_settings(settings, plan, self.index, self.group, unset)
        return (*unset(key, value, plan, self.group), own, report)

    def _report(
        self, plan: Plan, pattern: Pattern | None, B: int, Hq: int, key_bytes: int, times: int
    ) -> ContextReport:
        seen = pairs_of_queries(self._lowered(pattern, B, Hq)).cumsum()
        sums = [0.0, *(B * Hq * seen).tolist()]
        pairs = tuple(round(sum(sums[last] - sums[first] for first, last in held)) for held in self.runs)
        tokens, held = (tuple(map(count, runs)) for runs in (self.runs, self.source_runs))
        return ContextReport(self.rank, tokens, pairs, held, *keys_planned(plan), key_bytes, times, plan.gathers)

    def _lowered(self, pattern: Pattern | None, B: int, Hq: int) -> Lowered:
        """A pattern in the whole text."""
        return lower(pattern, self.of, B, Hq, self.length, self.source_length)

    # --- A call -------------------------------------------------------------------------------------------------------

    def plan(self, pattern: Pattern | None, B: int, Hq: int = 1, *, contiguous: bool = False) -> Plan:
        """Who needs which keys under a pattern; kept for the next call where the pattern cannot change.

        Args:
            pattern: of the call, in the whole text.
            B: batch rows.
            Hq: query heads.
            contiguous: whether kernels must count positions (ALiBi, a relative bias, dropout): keys between those
                that a run of queries sees are then sent, too.
        """
        return self._plan(pattern, B, Hq, contiguous, (1, GRID))

    def _plan(self, pattern: Pattern | None, B: int, Hq: int, contiguous: bool, blocks: tuple[int, int]) -> Plan:
        sizes = (B, Hq, self.length, self.source_length)
        kept: dict[Any, Plan] = self.__dict__.setdefault("_plans", {})
        fixed = pattern is None or (pattern.is_fixed and not pattern.tensors())
        if fixed and (found := kept.get((pattern, sizes, contiguous, blocks))) is not None:
            return found
        whole = self.of or Aligned()
        if whole.segments(B, *sizes[2:]) is None:
            raise wrong(
                "of", "must be a layout with segments", f"it is {whole!r}", "Use Packed, Padded, Aligned, KeyMask."
            )
        if pattern is not None:
            pattern.check(*sizes)
        runs = self.runs, self.source_runs, self.rank
        made = make_plan(pattern, whole, sizes, *runs, contiguous=contiguous, blocks=blocks)
        if fixed:
            if len(kept) >= MAX_PLANS:
                kept.pop(next(iter(kept)))
            kept[pattern, sizes, contiguous, blocks] = made
        return made

    @torch.compiler.disable(reason="plans are made outside of the graph")  # type: ignore[untyped-decorator, no-untyped-call]
    def localized(
        self, query: Tensor, key: Tensor, value: Tensor, settings: Any
    ) -> tuple[list[OwnCall], Callable[[list[Observations | None]], Observations]]:
        plan = self._plan_of(query, key, value, settings)
        calls = own_calls(query, key, value, settings, plan, self.index, self.group, self.heads_at_once)

        def join(found: list[Observations | None]) -> Observations:
            watched = settings.observe
            whole = [one and in_whole(one, watched, plan, self.source_length, self.group) for one in found]
            made = joined(whole, [call.query.shape[1] for call in calls], watched)
            if watched.blocks is None:
                return made
            by_block = self._plan_of(query, key, value, settings, blocks=watched.blocks)
            lowered = self._lowered(settings.pattern, *query.shape[:2])
            return replace(made, **block_sums(query, key, settings, by_block, lowered, self.group))

        return calls, join

    def _plan_of(
        self, query: Tensor, key: Tensor, value: Tensor, settings: Any, blocks: tuple[int, int] = (1, GRID)
    ) -> Plan:
        """The plan of a call, with queries and keys in their places in ``blocks``."""
        B, Hq, _, Lq, Lk, _, _ = read_shapes(query, key, value)
        self.check(B, Lq, Lk)
        positions = bool(settings.dropout) or any(rule.needs_positions for rule in settings.scores)
        positions |= settings.observe is not None and settings.observe.distance
        return self._plan(settings.pattern, B, Hq, positions, blocks)


def _group_of(group: Any) -> Any:
    """A process group, also of a mesh of one dimension."""
    if not dist.is_available() or not dist.is_initialized():
        way_out = "Start the processes with torchrun and call torch.distributed.init_process_group()."
        raise wrong("group", "needs an initialized process group", "there is none", way_out)
    if not isinstance(group, DeviceMesh):
        return group
    if group.ndim != 1:
        raise wrong("group", "must be a mesh of one dimension", f"it is {group}", 'Name one: mesh["context"].')
    return group.get_group()


def _index(runs: Runs) -> Tensor:
    parts = [torch.arange(first, last) for first, last in runs]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)
