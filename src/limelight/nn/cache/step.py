"""One forward pass over the next tokens of every row: what each layer adds to the cache, and gets from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...forms.layouts import Layout
from ...forms.patterns import Pattern
from ...operator.attention import attention
from ...tensors.shapes import wrong
from .folding import plain
from .kept import KeptStore
from .policies import Keep
from .precision import DENSE, Cached, Precision
from .stores import CrossStore, FullStore, NewTokens, RecurrentState, Slots, Store, WindowStore, maximum, store_for

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
        spread: the layout by which several processes have divided the tokens; ``None`` where this one reads all.
        precision: in which keys and values of a text are kept.
        rows: of the batch.
    """

    stores: Stores
    graphs: dict[nn.Module, Any] = field(default_factory=dict)
    keep: Keep | None = None
    layers: int | None = None
    spread: Layout | None = None
    precision: Precision = DENSE
    rows: int = 1
    _calls: dict[nn.Module, int] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether a layer has read the new tokens whose store cannot read them a second time."""
        called = (self.stores.get((layer, n)) for layer, times in self._calls.items() for n in range(times))
        return any(isinstance(store, (WindowStore, KeptStore, RecurrentState)) for store in called)

    @property
    def own_positions(self) -> Tensor:
        """``(B | 1, L)``: the positions of the new tokens that this process reads."""
        every = self.positions
        return every if self.spread is None else self.spread.own_tokens(lambda _: every, every.shape[1])

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
        store = self._complete(layer, pattern)
        if self.spread is None:
            return store.extend(self, key, value)
        if isinstance(store, WindowStore) and self.exists is None:
            first = max(self.longest - store.back, 0)
            store.begin(self.spread.whole(key, 2, first), self.spread.whole(value, 2, first), first)
        else:
            store.extend(self, self.spread.whole(key, 2), self.spread.whole(value, 2))
        return key, value, self.spread

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
        """Keep the keys and values that a cross-attention ``layer`` has computed of its source; returns those kept.

        Raises:
            ArgumentError: a gradient is wanted; the layer was cached as another kind; several processes have divided
                the tokens.
        """
        if self.spread is not None:
            way_out = "Divide the texts of a model without an encoder."
            raise wrong(
                "layout",
                "must be that of whole texts for cross-attention with a cache",
                f"it is {self.spread}",
                way_out,
            )
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
        return KeptStore(self.keep, len(texts_of(self.stores)), self.layers, self.precision)

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


def texts_of(stores: Stores) -> list[TextStore]:
    """The stores of self-attention, in the order of their first calls."""
    return [store for store in stores.values() if isinstance(store, (FullStore, WindowStore, KeptStore))]


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
