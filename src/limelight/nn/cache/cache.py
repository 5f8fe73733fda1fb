"""The keys and values of the tokens that a model has read, so that the next token costs one token.

A `Cache` belongs to one run of one model over a batch of texts. Each forward pass opens a `Step`, every attention layer
gives it its new keys and values and gets back all those that its queries attend to, and the pass closes the step::

    cache = Cache()
    for tokens in (prompt, next_token, ...):
        step = cache.step(*tokens.shape, layout)
        context = ForwardContext(layout, step.positions, cache=step)
        ...  # the layers
        cache.close(step)

(`limelight.models.Stack.forward` does this when it is given a ``cache``.) What a layer keeps follows from its
pattern: a causal window of W keys keeps at most 2 W, anything else keeps everything, or what a policy chooses (`Keep`);
cross-attention keeps the keys and values of its source, computed once.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ...forms.layouts import Layout
from ...tensors.shapes import describe, whole_number, wrong
from .kept import Kept, KeptStore
from .policies import Keep
from .precision import EightBits, Precision
from .step import Step, Stores, texts_of
from .stores import Lengths, WindowStore, maximum


class Cache:
    """What every layer of a model keeps of the tokens that were read.

    >>> import torch
    >>> from limelight.models import new
    >>> model = new("llama", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    ...             intermediate_size=64, max_position_embeddings=128).eval()
    >>> tokens, cache = torch.randint(100, (1, 12)), Cache()
    >>> with torch.no_grad():
    ...     prompt = model(tokens[:, :11], cache=cache)
    ...     last = model(tokens[:, 11:], cache=cache)
    >>> last.logits.shape, cache.lengths
    (torch.Size([1, 1, 100]), 12)

    Args:
        limit: the maximum number of tokens of a row; memory for them is taken at once, and more are refused. ``None``:
            memory grows by doubling, so that each token is copied a bounded number of times on average.
        keep: which keys are kept of a text (`Keep`), in layers whose pattern is ``Causal()``; those of a causal window
            keep the window. ``None`` keeps all that a later query can see.
        dtype: int8, float8_e4m3fn or float8_e5m2 keeps keys and values of texts in 8 bits (`limelight.Quantized`), an
            approximation: queries after the first pass in which any row has tokens see all of them rounded, those of
            their own pass included. ``None`` keeps their own dtype.
        rotate: whether keys and values of 8 bits are rotated before they are rounded.

    Raises:
        ArgumentError: ``keep`` is no `Keep`; ``dtype`` has not 8 bits.
    """

    def __init__(
        self, limit: int | None = None, *, keep: Keep | None = None, dtype: EightBits | None = None, rotate: bool = True
    ) -> None:
        self.limit = None if limit is None else whole_number("limit", limit, at_least=1)
        if keep is not None and not isinstance(keep, Keep):
            raise wrong("keep", "must be a Keep, or None", f"it is {describe(keep)}", "For example Keep(2048).")
        self.keep, self.precision = keep, Precision.of(dtype, rotate)
        self.lengths: Lengths = 0
        self._rows: int | None = None
        self._open: Step | None = None  # the pass that was begun last, until it is closed
        self._stores: Stores = {}
        self._graphs: dict[nn.Module, Any] = {}

    def step(
        self,
        B: int,
        L: int,
        layout: Layout | None = None,
        device: torch.device | str = "cpu",
        *,
        layers: int | None = None,
    ) -> Step:
        """Open a pass over ``L`` more tokens of each of the ``B`` rows.

        Args:
            B: rows, the same in each pass.
            L: tokens of each row, padding included.
            layout: ``None`` when no token is padding, or `limelight.Padded`: at either side in the first pass, then at
                the right. In the first pass also `limelight.distributed.ContextParallel`: this process reads its own
                tokens and keeps the keys and values of all.
            device: of the positions.
            layers: how many self-attention layers the model has; needed by a `Pyramid` alone.

        Raises:
            ArgumentError: another number of rows, a layout that cannot be continued, more tokens than the limit; an
                earlier pass ended before all layers had read its tokens, and some of them cannot read these again.
        """
        if self._rows is None:
            self._stores.clear()  # of a first pass that ended early
        elif self._open is not None and self._open.changed:
            got = "a pass ended before all layers had read its tokens"
            raise wrong("cache", "must hold whole passes", got, "Read the text again with a new cache.")
        whole_number("B", B, at_least=0)
        whole_number("L", L, at_least=0)
        if self._rows not in (None, B):
            raise wrong(
                "tokens",
                f"must have the {self._rows} rows of the cache",
                f"they have {B}",
                "Cache.repeat makes copies of a prompt that was read once; Cache.select chooses among rows.",
            )
        spread = layout if layout is not None and layout.spread else None
        if spread is not None:
            layout, L = self._divided(spread, B, L)
        count: Lengths = L
        first: Lengths = 0
        if layout is not None:
            first, count = _new_tokens(layout, B, L)
            if maximum(self.lengths) and maximum(first):
                raise wrong(
                    "layout",
                    "must have its padding at the right once a cache holds tokens",
                    f"it is {layout!r}",
                    "Put the new tokens of every row first.",
                )
        positions, exists = _positions(self.lengths, count, first, B, L, device)
        held = self._stores, self._graphs, self.keep, layers, spread, self.precision, B
        step = Step(layout, self.limit, self.lengths, count, positions, exists, *held)
        if self.limit is not None and step.longest > self.limit:
            raise wrong(
                "tokens",
                f"must fit into the {self.limit} positions of the cache",
                f"a row would have {step.longest}",
                f"Use Cache(limit={step.longest}) or more, or Cache() without a limit.",
            )
        self._open = step
        return step

    def _divided(self, spread: Layout, B: int, L: int) -> tuple[Layout | None, int]:
        """The layout and length of the whole text, of which this process reads ``L`` tokens."""
        spread.check(B, L, L)
        for why in ["it holds tokens"] * (maximum(self.lengths) > 0) + [f"it has {self.keep}"] * (
            self.keep is not None
        ):
            rule = "must be empty and keep every key to read a text that lies on several processes"
            raise wrong("cache", rule, why, "Divide the first tokens of a text alone, with a Cache().")
        return spread.of_whole(L)

    def close(self, step: Step) -> None:
        """End a pass: its tokens count as read."""
        self.lengths, self._rows, self._open = _same(step.after), step.rows, None

    def select(self, rows: Tensor) -> None:
        """Keep these ``rows`` ``(N,)``, in this order, with repetitions: beams, or texts not yet ended.

        Raises:
            ArgumentError: ``rows`` is no integer tensor of one dimension, or one of them is no row of the cache.
        """
        if not isinstance(rows, Tensor) or rows.dim() != 1 or rows.dtype not in (torch.int64, torch.int32):
            way_out = "For example torch.tensor([1, 1, 0])."
            raise wrong("rows", "must be an integer tensor of one dimension", f"it is {describe(rows)}", way_out)
        if self._rows is None:
            return
        chosen = rows.tolist()
        if chosen == list(range(self._rows)):
            return
        if bad := [row for row in chosen if not 0 <= row < self._rows]:
            way_out = "Rows are counted from 0."
            raise wrong("rows", f"must be among the {self._rows} rows of the cache", f"one is {bad[0]}", way_out)
        if isinstance(self.lengths, Tensor):
            self.lengths = _same(self.lengths[rows.cpu()])
        for store in self._stores.values():
            store.select(rows)
        self._rows = len(rows)

    def repeat(self, times: int) -> None:
        """Repeat every row ``times`` times, copies side by side: a prompt read once, continued in several ways."""
        if self._rows is not None:
            whole_number("times", times, at_least=1)
            self.select(torch.arange(self._rows, device="cpu").repeat_interleave(times))

    def kept(self, layer: int) -> Kept:
        """Which keys the self-attention layer number ``layer`` keeps, in the order of the first calls, from 0.

        Raises:
            ArgumentError: no such layer has read a text.
        """
        stores = texts_of(self._stores)
        if not 0 <= whole_number("layer", layer) < len(stores):
            got = f"it is {layer}, and {len(stores)} layers have read a text"
            raise wrong("layer", "must be the number of a self-attention layer", got, "Layers are counted from 0.")
        store = stores[layer]
        if isinstance(store, KeptStore):
            return store.kept()
        ends = torch.as_tensor(self.lengths).expand(self._rows or 0)
        first = torch.as_tensor(store.start if isinstance(store, WindowStore) else 0).expand(len(ends))
        heads = store.buffers[0].shape[1]
        rows = tuple((torch.arange(a, b),) * heads for a, b in zip(first.tolist(), ends.tolist(), strict=True))
        return Kept(rows, first[:, None].expand(-1, heads))

    @property
    def bytes(self) -> int:
        """Memory of all keys, values and states."""
        return sum(tensor.nbytes for store in self._stores.values() for tensor in store.tensors())

    def __deepcopy__(self, memo: dict[int, Any]) -> Cache:
        """A cache of the same layers; of their copies where they were copied before it, in one call."""
        copied = memo[id(self)] = Cache(self.limit, keep=self.keep)
        copied.lengths, copied._rows, copied.precision = deepcopy(self.lengths, memo), self._rows, self.precision
        copied._open = self._open
        for (layer, call), store in self._stores.items():
            copied._stores[memo.get(id(layer), layer), call] = deepcopy(store, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Without captured graphs, which hold addresses of this process."""
        opened = None if self._open is None else replace(self._open, graphs={})
        return {**self.__dict__, "_graphs": {}, "_open": opened}

    def __repr__(self) -> str:
        return f"<Cache: {self._rows or 0} rows, up to {maximum(self.lengths)} tokens, {self.bytes / 2**20:.1f} MiB>"


def _same(lengths: Lengths) -> Lengths:
    """One number where all rows have the same."""
    if isinstance(lengths, Tensor) and len(lengths) and bool((lengths == lengths[0]).all()):
        return int(lengths[0])
    return lengths


def _new_tokens(layout: Layout, B: int, L: int) -> tuple[Lengths, Lengths]:
    """Index of the first, and number, of the new tokens of each row."""
    layout.check(B, L, L)
    ranges = layout.text_ranges(L)
    if ranges is not None:
        first, count = (x if isinstance(x, int) else _same(x.long().cpu()) for x in ranges)
        return first, count
    raise wrong(
        "layout",
        "must be Padded, with one set of lengths, or None for a model with a cache",
        f"it is {layout!r}",
        "A cache holds one text a row; run packed or masked texts without it.",
    )


def _positions(
    before: Lengths, count: Lengths, first: Lengths, B: int, L: int, device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """`NewTokens.positions` and `NewTokens.exists`."""
    if isinstance(before, int) and isinstance(count, int) and count == L:
        return torch.arange(before, before + L, device=device)[None], None
    starts, counts, firsts = (torch.as_tensor(x, device=device).expand(B)[:, None] for x in (before, count, first))
    number = torch.arange(L, device=device) - firsts  # (B, L): which new token of its row
    exists = (number >= 0) & (number < counts)
    return (starts + number).where(exists, 0), exists
