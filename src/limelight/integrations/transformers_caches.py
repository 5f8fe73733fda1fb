"""Caches of transformers: one that keeps only some keys of each head, one that keeps all of them in 8 bits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary
from transformers import PreTrainedConfig
from transformers.cache_utils import (
    DYNAMIC_LAYER_TYPE_MAPPING,
    Cache,
    CacheLayerMixin,
    get_layer_types_and_kwargs,
)

from ..backends.contract import BackendError
from ..forms.layouts import KeyMask, Layout
from ..forms.patterns import Causal, Pattern, Window
from ..forms.quantized import eight_bits
from ..forms.scores import Bias
from ..nn.cache import Keep, Kept
from ..nn.cache.folding import plain
from ..nn.cache.kept import KeptStore
from ..nn.cache.precision import EightBits, Precision
from ..nn.cache.step import TextStore
from ..nn.cache.stores import Lengths, NewTokens, store_for
from ..operator.attention import attention
from ..tensors.shapes import describe, whole_number, wrong
from .transformers_report import NAME


class _StoredCache(Cache):
    """Base of the caches of Limelight.

    Args:
        config: of the model.
        make: makes a layer from its number, its kind and the number of layers; ``None`` for that of a ``DynamicCache``.
    """

    def __init__(self, config: PreTrainedConfig, make: Callable[[int, str, int], StoredLayer | None]) -> None:
        if not isinstance(config, PreTrainedConfig):
            got = f"it is {describe(config)}"
            raise wrong("config", "must be the configuration of the model", got, "Give model.config.")
        kinds, settings = get_layer_types_and_kwargs(config.get_text_config(decoder=True))
        super().__init__(
            layers=[
                make(number, kind, len(kinds)) or DYNAMIC_LAYER_TYPE_MAPPING[kind](**more)
                for number, (kind, more) in enumerate(zip(kinds, settings, strict=True))
            ]
        )
        self._stored = [layer for layer in self.layers if isinstance(layer, StoredLayer)]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Hand the new keys of a layer to it; see `StoredLayer.update`.

        Raises:
            BackendError: an earlier pass was interrupted, so that the layers have read different tokens.
        """
        layer = self.layers[layer_idx]
        if isinstance(layer, StoredLayer):
            first, new = self._stored[0], key_states.shape[2]
            # A layer that has read nothing may use the keys of another one; it is compared in its own update.
            others = [other.seen for other in self._stored if other.seen] if layer is first else [first.seen - new]
            if others and {layer.seen} != set(others):
                raise BackendError(
                    f"The layers of {layer.cache[0].lower()}{layer.cache[1:]} have read different tokens, since a pass "
                    "was interrupted. Use reset(), or a new cache, and read the text again."
                )
        found: tuple[Tensor, Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return found

    @property
    def bytes(self) -> int:
        """Memory of all keys and values, their scales in 8 bits, and what a policy needs to choose among them."""
        tensors: list[Tensor] = []
        for layer in self.layers:
            if isinstance(layer, StoredLayer):
                tensors += [] if layer.store is None else layer.store.tensors()
            elif isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None:
                tensors += [layer.keys, layer.values]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class KeptCache(_StoredCache):
    """A cache for a model of transformers, in which each head keeps the keys that a policy chooses.

    ::

        enable()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="limelight")
        cache = KeptCache(Keep(2048, by=Received(), heads=Adaptive()), model.config)
        model.generate(**inputs, past_key_values=cache)
        cache.kept(0).positions  # of layer 0: which tokens each head has kept

    Layers with a sliding window keep their window, as in a ``DynamicCache``. A cache belongs to one batch; it can be
    reordered (beam search) and continued with further tokens, but not cropped (assisted decoding).

    Args:
        keep: how many keys a head keeps, and which.
        config: of the model, which names the kinds of its layers.
        dtype: int8, float8_e4m3fn or float8_e5m2 to keep them in 8 bits, as `EightBitCache`; ``None`` for their own.
        rotate: whether keys and values of 8 bits are rotated before they are rounded.

    Raises:
        ArgumentError: arguments of another kind.
        BackendError: in a forward pass: an attention implementation that is not Limelight's, a mask that is not causal,
            tokens that are padding behind cached ones, another batch, a pass before it that was interrupted.
    """

    def __init__(
        self, keep: Keep, config: PreTrainedConfig, *, dtype: EightBits | None = None, rotate: bool = True
    ) -> None:
        if not isinstance(keep, Keep):
            raise wrong("keep", "must be a Keep", f"it is {describe(keep)}", "For example Keep(2048).")
        precision = Precision.of(dtype, rotate)

        def make(number: int, kind: str, layers: int) -> StoredLayer | None:
            if kind != "full_attention":
                return None
            return StoredLayer("A KeptCache", partial(_kept_store, keep, number, layers, precision))

        super().__init__(config, make)

    def kept(self, layer: int) -> Kept:
        """Which keys a layer keeps of each row and key head.

        Raises:
            ArgumentError: no layer of this number keeps keys by the policy.
        """
        number = whole_number("layer", layer, at_least=0, at_most=len(self.layers) - 1)
        found = self.layers[number]
        if not isinstance(found, StoredLayer):
            got = f"layer {layer} is a {type(found).__name__}, which keeps its window"
            raise wrong("layer", "must be one whose keys the policy chooses", got, "Name another layer.")
        if not isinstance(found.store, KeptStore):
            raise wrong("layer", "must have read a text", f"layer {layer} has not", "Run the model first.")
        return found.store.kept()


class EightBitCache(_StoredCache):
    """A cache for a model of transformers that keeps keys and values in 8 bits: half of the memory of bfloat16.

    ::

        enable()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="limelight")
        model.generate(**inputs, past_key_values=EightBitCache(model.config))

    An approximation: queries after the first pass see all keys and values rounded, with a scale for each token and head
    (`limelight.Quantized`), which the CPU kernels read as they lie. Layers with a sliding window keep their window in 8
    bits, layers without attention what they keep in a ``DynamicCache``. A cache belongs to one batch; it can be
    reordered (beam search) and continued with further tokens, but not cropped (assisted decoding). The decoder of a
    model with an encoder takes ``EncoderDecoderCache(EightBitCache(config), DynamicCache(config=config))``.

    Args:
        config: of the model, which names the kinds of its layers.
        dtype: int8, float8_e4m3fn or float8_e5m2.
        rotate: whether keys and values are rotated before they are rounded.

    Raises:
        ArgumentError: arguments of another kind.
        BackendError: in a forward pass: an attention implementation that is not Limelight's, tokens that are padding
            behind cached ones, a mask of padded texts that is neither causal nor a causal window, another batch, a pass
            before it that was interrupted.
    """

    def __init__(self, config: PreTrainedConfig, dtype: EightBits = "int8", *, rotate: bool = True) -> None:
        precision = Precision.of(eight_bits("dtype", dtype), rotate)

        def make(number: int, kind: str, layers: int) -> StoredLayer | None:
            if kind not in ("full_attention", "sliding_attention"):
                return None
            return StoredLayer("An EightBitCache", partial(store_for, precision=precision))

        super().__init__(config, make)


def _kept_store(keep: Keep, number: int, layers: int, precision: Precision, pattern: Pattern | None) -> KeptStore:
    return KeptStore(keep, number, layers, precision)


class StoredLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of a cache of Limelight, in a store of `limelight.nn.cache`.

    `update` returns the new keys alone; Limelight's attention finds the layer by them (`layer_of`) and calls `attend`.

    Args:
        cache: what it belongs to, in the words of errors: "A KeptCache".
        make: makes the store from the pattern of the first call.
    """

    is_sliding = False
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, cache: str, make: Callable[[Pattern | None], TextStore]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self._make = cache, make
        self.reset()

    def reset(self) -> None:
        self.store: TextStore | None = None
        self.batch_size = 0
        self.seen = 0  # tokens that were read, padding included
        self.lengths: Lengths = 0  # of each row, without padding
        self._waiting = False  # whether keys were returned that no attention has read

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if torch.compiler.is_compiling():
            raise BackendError(f"{self.cache} cannot be compiled: what it holds changes with what is read.")
        if self._waiting:
            raise BackendError(
                f"{self.cache} is read by Limelight's attention alone, which has not read what it was given. Load the "
                f"model with attn_implementation={NAME!r}, without torch.compile. Or a pass was interrupted: use "
                "reset(), or a new cache."
            )
        if self.seen and len(key_states) != self.batch_size:
            raise BackendError(
                f"{self.cache} belongs to one batch: it holds {self.batch_size} rows, and there are keys of "
                f"{len(key_states)}. Use reset(), or a new cache for each batch."
            )
        if torch.is_grad_enabled() and key_states.requires_grad:
            raise BackendError(f"{self.cache} keeps keys without their gradients. Run the model under torch.no_grad().")
        self.lazy_initialization(key_states, value_states)
        self.batch_size = len(key_states)
        self.seen += key_states.shape[2]
        self._waiting = True
        _layers[key_states] = self
        return key_states, value_states

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layout: Layout | None, settings: dict[str, Any]
    ) -> Tensor:
        """Attention of the new queries to all that the layer keeps: ``(B, Hq, L, D)`` to ``(B, Hq, L, Dv)``.

        Args:
            query: ``(B, Hq, L, D)``.
            key: ``(B, Hkv, L, D)``, as `update` returned it.
            value: ``(B, Hkv, L, Dv)``.
            layout: of the new queries and all tokens that were read.
            settings: further arguments of `limelight.attention`.
        """
        self._waiting = False
        B, _, L, _ = query.shape
        if layout is not None and not isinstance(layout, KeyMask):
            raise BackendError(f"{self.cache} cannot hold tokens under {layout!r}. It serves whole texts, also padded.")
        exists = None if layout is None else layout.mask[:, -L:].expand(B, -1)
        if self.seen > L:
            if exists is not None and not bool(exists.all()):
                raise BackendError(
                    f"{self.cache} cannot go on with tokens that are padding. Continue texts one by one."
                )
            layout = exists = None
        new = self._new_tokens(layout, exists, B, L, query.device)
        if self.store is None:
            self.store = self._make(settings["pattern"])
        if isinstance(self.store, KeptStore):
            output = self.store.attend(new, query, key, value, settings)
        else:
            self._check_padded(new, settings)
            keys, values, layout = self.store.extend(new, key, value)
            output = plain(attention(query, keys, values, layout=layout, **settings))
        self.lengths = new.after
        return output

    def _check_padded(self, new: NewTokens, settings: dict[str, Any]) -> None:
        """Refuse what goes by the index of a key where tokens that are padding are not kept."""
        if isinstance(new.after, int) and new.exists is None:
            return
        pattern = settings["pattern"]
        by_index = [] if pattern is None else [x for x in pattern.conjuncts() if not isinstance(x, (Causal, Window))]
        if by_index or any(isinstance(rule, Bias) for rule in settings["scores"]):
            raise BackendError(
                f"{self.cache} cannot hold padded texts under {by_index or settings['scores']}, by which a query "
                "sees a key by its place in the padded batch. Use a DynamicCache, or texts of one length."
            )

    def _new_tokens(
        self, layout: Layout | None, exists: Tensor | None, B: int, L: int, device: torch.device
    ) -> NewTokens:
        before = self.lengths
        if exists is None and isinstance(before, int):
            return NewTokens(layout, None, before, L, torch.arange(before, before + L, device=device)[None], None)
        exists = torch.ones(B, L, dtype=torch.bool, device=device) if exists is None else exists.to(device)
        start = torch.as_tensor(before, device=device).expand(B)[:, None]
        positions = (start + exists.long().cumsum(1) - 1).where(exists, 0)
        return NewTokens(layout, None, before, exists.sum(1).cpu(), positions, exists)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        return self.seen

    def get_max_length(self) -> int:
        return -1

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.seen:
            self._select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._select(torch.arange(self.batch_size)[indices.cpu()] if self.seen else indices)

    def crop(self, tokens_to_remove: int) -> None:
        """Raise `BackendError` unless no token is to be removed: keys that were dropped cannot come back."""
        if tokens_to_remove:
            raise BackendError(f"{self.cache} cannot be cropped: what was dropped for a token is gone.")

    def offload(self) -> None:
        """Raise `BackendError`: keys stay where they are computed with."""
        raise BackendError(f"{self.cache} cannot be offloaded.")

    def _select(self, rows: Tensor) -> None:
        if self.store is None:
            return
        self.store.select(rows)
        self.batch_size = len(rows)
        if isinstance(self.lengths, Tensor):
            self.lengths = self.lengths[rows.cpu()]


def layer_of(key: Tensor) -> StoredLayer | None:
    """The layer of a cache of Limelight that returned these keys; ``None`` for other keys."""
    if torch.compiler.is_compiling() or not _layers:
        return None
    found: StoredLayer | None = _layers.get(key, None)  # type: ignore[no-untyped-call]
    return found


_layers = WeakIdKeyDictionary()  # by the keys that `update` returned
