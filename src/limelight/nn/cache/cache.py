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

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...forms.layouts import Layout
from ...forms.patterns import Pattern
from ...operator.attention import attention
from ...tensors.shapes import describe, whole_number, wrong
from .folding import plain
from .kept import Kept, KeptStore
from .policies import Keep
from .precision import DENSE, Cached, EightBits, Precision
from .stores import (
    CrossStore,
    FullStore,
    Lengths,
    NewTokens,
    RecurrentState,
    Slots,
    Store,
    WindowStore,
    maximum,
    store_for,
)

Stores = dict[tuple[nn.Module, int], Store]  # of a layer and how often it was called before in the same pass
TextStore = FullStore | WindowStore | KeptStore


@dataclass(eq=False)
class Step(NewTokens):
    """One forward pass over the next tokens of every row.

    A layer that is called several times in a pass has a store for each time.

    Args:
        stores: what each layer keeps.
        graphs: what was captured of the layers (`limelight.nn.capture`).
        keep: which keys are kept of a text; ``None`` for all that a later query can see.
        layers: how many layers the model has; ``None`` where that is not known.
        precision: in which keys and values of a text are kept.
    """

    stores: Stores
    graphs: dict[nn.Module, Any] = field(default_factory=dict)
    keep: Keep | None = None
    layers: int | None = None
    precision: Precision = DENSE
    _calls: dict[nn.Module, int] = field(default_factory=dict)

    def extend(
        self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor
    ) -> tuple[Cached, Cached, Layout | None]:
        """Add the new keys and values of a self-attention ``layer`` to its store.

        Args:
            layer: the calling layer.
            pattern: which keys its queries may see.
            key: ``(B, Hkv, L, D)``.
            value: ``(B, Hkv, L, Dv)``.

        Returns:
            The keys and values that the queries of this pass attend to, and the layout of queries and keys.

        Raises:
            ArgumentError: a gradient is wanted; the layer was cached as another kind, or not at all before; the cache
                keeps only some keys of each head, which `attend` computes with.
        """
        _no_gradient(key, value)
        return self._complete(layer, pattern).extend(self, key, value)

    def attend(self, layer: nn.Module, query: Tensor, key: Tensor, value: Tensor, settings: dict[str, Any]) -> Tensor:
        """Add the new keys and values of a self-attention ``layer`` to its store, and attend to all that it keeps.

        Args:
            layer: the calling layer.
            query: ``(B, Hq, L, D)``.
            key: ``(B, Hkv, L, D)``.
            value: ``(B, Hkv, L, Dv)``.
            settings: further arguments of `limelight.attention`, without a layout.

        Returns:
            ``(B, Hq, L, Dv)``.

        Raises:
            ArgumentError: as `extend`; or what a cache that keeps only some keys cannot serve.
        """
        _no_gradient(key, value)
        store = self._of_text(layer, settings.get("pattern"))
        if isinstance(store, KeptStore):
            return store.attend(self, query, key, value, settings)
        keys, values, layout = store.extend(self, key, value)
        return plain(attention(query, keys, values, layout=layout, **settings))

    def slots(self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor) -> Slots:
        """As `extend`, for keys and values that the caller writes itself; for a step that `continues_unpadded`.

        Args:
            layer: the calling layer.
            pattern: which keys its queries may see.
            key: has the shape and dtype of the new keys, ``(B, Hkv, L, D)``.
            value: has those of the new values, ``(B, Hkv, L, Dv)``.
        """
        return self._complete(layer, pattern).slots(self, key, value)

    def cached_source(self, layer: nn.Module) -> tuple[Tensor, Tensor] | None:
        """Keys and values of its source that a cross-attention ``layer`` computed in an earlier pass, or ``None``."""
        store = self.stores.get((layer, self._calls.get(layer, 0)))
        return (store.key, store.value) if isinstance(store, CrossStore) else None

    def keep_source(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values that a cross-attention ``layer`` has computed of its source; returns those kept."""
        store = self._store(layer, lambda: CrossStore(key, value))
        if not isinstance(store, CrossStore):
            raise _two_kinds(layer, store, "cross-attention")
        _no_gradient(store.key, store.value)
        return store.key, store.value

    def recurrent_state(self, layer: nn.Module) -> RecurrentState:
        """The state of a recurrent ``layer``, to be read and replaced."""
        store = self._store(layer, RecurrentState)
        if not isinstance(store, RecurrentState):
            raise _two_kinds(layer, store, "a recurrence")
        return store

    def _of_text(self, layer: nn.Module, pattern: Pattern | None) -> TextStore:
        store = self._store(layer, lambda: self._new_store(pattern))
        if not isinstance(store, (FullStore, WindowStore, KeptStore)):
            raise _two_kinds(layer, store, "self-attention")
        return store

    def _new_store(self, pattern: Pattern | None) -> TextStore:
        store = store_for(pattern, self.precision)
        if self.keep is None or isinstance(store, WindowStore):
            return store
        return KeptStore(self.keep, len(_texts(self.stores)), self.layers)

    def _complete(self, layer: nn.Module, pattern: Pattern | None) -> FullStore | WindowStore:
        """The store of a layer whose heads keep the same keys."""
        store = self._of_text(layer, pattern)
        if isinstance(store, KeptStore):
            raise wrong(
                "cache",
                f"must keep every key for a {type(layer).__name__}, which takes keys and values from it",
                f"it has {self.keep}, by which each head keeps others",
                "Use a cache without `keep`, or a layer that calls ForwardContext.attend, such as MultiHead.",
            )
        return store

    def _store(self, layer: nn.Module, make: Callable[[], Store]) -> Store:
        call = self._calls.get(layer, 0)
        self._calls[layer] = call + 1
        if (layer, call) not in self.stores:
            if self.continues:
                raise wrong(
                    "cache",
                    "must have been filled by the layers that continue with it",
                    f"it holds up to {maximum(self.before)} tokens, none of them read by this {type(layer).__name__}",
                    "Copy or pickle a cache together with its model, or read the text again with a new Cache.",
                )
            self.stores[layer, call] = make()
        return self.stores[layer, call]


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
            approximation: queries after the first pass see all of them rounded. ``None`` keeps their own dtype.
        rotate: whether keys and values of 8 bits are rotated before they are rounded.

    Raises:
        ArgumentError: ``keep`` is no `Keep`, or stands beside a ``dtype``; ``dtype`` has not 8 bits.
    """

    def __init__(
        self, limit: int | None = None, *, keep: Keep | None = None, dtype: EightBits | None = None, rotate: bool = True
    ) -> None:
        self.limit = None if limit is None else whole_number("limit", limit, at_least=1)
        if keep is not None and not isinstance(keep, Keep):
            raise wrong("keep", "must be a Keep, or None", f"it is {describe(keep)}", "For example Keep(2048).")
        self.keep, self.precision = keep, Precision.of(dtype, rotate)
        if keep is not None and dtype is not None:
            got = f"there is keep={keep}"
            raise wrong("dtype", "must be None where a policy chooses what is kept", got, "Leave one of them out.")
        self.lengths: Lengths = 0
        self._rows: int | None = None
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
                the right.
            device: of the positions.
            layers: how many self-attention layers the model has; needed by a `Pyramid` alone.

        Raises:
            ArgumentError: another number of rows, a layout that cannot be continued, more tokens than the limit.
        """
        whole_number("B", B, at_least=0)
        whole_number("L", L, at_least=0)
        if self._rows not in (None, B):
            raise wrong(
                "tokens",
                f"must have the {self._rows} rows of the cache",
                f"they have {B}",
                "Cache.repeat makes copies of a prompt that was read once; Cache.select chooses among rows.",
            )
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
        step = Step(
            layout, self.limit, self.lengths, count, positions, exists,
            self._stores, self._graphs, self.keep, layers, self.precision,
        )  # fmt: skip
        if self.limit is not None and step.longest > self.limit:
            raise wrong(
                "tokens",
                f"must fit into the {self.limit} positions of the cache",
                f"a row would have {step.longest}",
                f"Use Cache(limit={step.longest}) or more, or Cache() without a limit.",
            )
        self._rows = B
        return step

    def close(self, step: Step) -> None:
        """End a pass: its tokens count as read."""
        self.lengths = _same(step.after)

    def select(self, rows: Tensor) -> None:
        """Keep these ``rows`` ``(N,)``, in this order, with repetitions: beams, or texts not yet ended."""
        if self._rows is None or (len(rows) == self._rows and rows.tolist() == list(range(self._rows))):
            return
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
        stores = _texts(self._stores)
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
        for (layer, call), store in self._stores.items():
            copied._stores[memo.get(id(layer), layer), call] = deepcopy(store, memo)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """Without captured graphs, which hold addresses of this process."""
        return {**self.__dict__, "_graphs": {}}

    def __repr__(self) -> str:
        return f"<Cache: {self._rows or 0} rows, up to {maximum(self.lengths)} tokens, {self.bytes / 2**20:.1f} MiB>"


def _texts(stores: Stores) -> list[TextStore]:
    """The stores of self-attention, in the order of their first calls."""
    return [store for store in stores.values() if isinstance(store, (FullStore, WindowStore, KeptStore))]


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


def _two_kinds(layer: nn.Module, store: Store, kind: str) -> Exception:
    """The error of a layer that is called in two ways with one cache."""
    kinds = {CrossStore: "cross-attention", RecurrentState: "a recurrence"}
    got = f"this {type(layer).__name__} was cached as {kinds.get(type(store), 'self-attention')} before"
    return wrong("layer", f"cannot be cached as {kind}", got, "Use two layers, one for each.")


def _no_gradient(*tensors: Tensor) -> None:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise wrong(
            "cache",
            "keeps keys and values without their gradients",
            "a gradient is wanted",
            "Run the model under torch.no_grad(), or train without a cache.",
        )
