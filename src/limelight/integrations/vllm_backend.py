"""vLLM's attention backend over `limelight.attention`: every batch, prompts and next tokens together, is one call.

vLLM's scheduler decides which tokens of which texts are computed, and in which pages of the cache their keys and
values lie. `Builder` describes that once for each step, as a `Paged` layout; `Impl` is one layer of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from vllm.config import get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1.attention.backend import AttentionImpl, AttentionMetadataBuilder, AttentionType, MultipleOf
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.kv_cache_interface import EncoderOnlyAttentionSpec, KVCacheLayout

from ..forms.layouts import Layout, Packed, Paged
from ..forms.observations import Observations, Observe
from ..forms.settings import Settings
from ..operator.attention import attention
from ..operator.repeated import Repeated
from . import vllm_watch
from .serving import CACHE_DTYPES, LayerSettings, reasons_against_layer, reasons_against_model, refuse, settle
from .serving_observe import Record, Wanted, split

#: Sizes of pages that the kernels read in place are multiples of this.
PAGE_MULTIPLE = 16


class Backend(CPUAttentionBackend):  # type: ignore[misc]
    """Limelight in the place of vLLM's ``CPU_ATTN``."""

    supported_kv_cache_dtypes: ClassVar[list[str]] = list(CACHE_DTYPES)

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[Any]:
        """Page sizes that the kernels read in place."""
        return [MultipleOf(PAGE_MULTIPLE)]

    @classmethod
    def get_supported_head_sizes(cls) -> list[int]:
        """An empty list, which means that every head width is served."""
        return []

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        """Pages in which a head's keys lie in one piece, and its values behind them."""
        return (KVCacheLayout.LBHNC,)

    @classmethod
    def supports_sink(cls) -> bool:
        """Sinks are served: ``True`` for every layer."""
        return True

    @staticmethod
    def get_impl_cls() -> type[Impl]:
        """The class of a layer's attention, `Impl`."""
        return Impl

    @staticmethod
    def get_builder_cls() -> type[Builder]:
        """The class that describes a step, `Builder`."""
        return Builder


class CustomBackend(Backend):
    """Limelight as vLLM's ``CUSTOM`` backend, which ``--attention-backend CUSTOM`` chooses on GPUs."""

    @staticmethod
    def get_name() -> str:
        """The name under which vLLM finds the backend."""
        return "CUSTOM"


@dataclass
class Step:
    """The tokens that a group of layers computes in one step.

    Attributes:
        starts: where the queries of each text begin among the ``starts[-1]`` queries of the step.
        key_lengths: keys of each text, those of this step included.
        pages: ``(R, M)`` page table; ``None`` where keys come with the queries (encoders).
        causal: whether a token sees only those before it and itself.
        slot_mapping: where the cache takes each token's key and value; vLLM's cross-attention sets it.
        layout: all of it as a layout.
        repeated: the call of the layers that have the same settings.
        parts: what `part` made.
    """

    starts: list[int]
    key_lengths: list[int]
    pages: Tensor | None
    causal: bool
    slot_mapping: Tensor | None = None
    layout: Layout = field(init=False)
    repeated: dict[LayerSettings, Repeated] = field(default_factory=dict)
    parts: dict[tuple[int, ...], tuple[Tensor, Step]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        queries = self.query_lengths
        self.layout = Packed(queries) if self.pages is None else Paged(queries, tuple(self.key_lengths), self.pages)

    @property
    def query_lengths(self) -> tuple[int, ...]:
        """The number of queries of each text."""
        return tuple(last - first for first, last in pairwise(self.starts))

    def part(self, rows: Sequence[int]) -> tuple[Tensor, Step]:
        """The indices of the queries of some ``rows``, and these texts as a step; made once for all layers."""
        found = self.parts.get(tuple(rows))
        if found is None:
            tokens = torch.cat([torch.arange(self.starts[row], self.starts[row + 1]) for row in rows])
            lengths = self.query_lengths
            starts = [0, *accumulate(lengths[row] for row in rows)]
            pages = None if self.pages is None else self.pages[list(rows)]
            found = tokens, Step(starts, [self.key_lengths[row] for row in rows], pages, self.causal)
            self.parts[tuple(rows)] = found
        return found


class Builder(AttentionMetadataBuilder):  # type: ignore[misc]
    """Describes each step of the scheduler to the layers of one group of the cache."""

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: torch.device) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.encoder_only = isinstance(kv_cache_spec, EncoderOnlyAttentionSpec)
        layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase, layer_names)
        refuse("this model", reasons_against_model(vllm_config, layers.values(), vllm_watch.installed()))

    def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Step:
        """The step that ``common_attn_metadata`` describes; the other arguments are not read."""
        common = common_attn_metadata
        if isinstance(common.causal, Tensor):
            refuse("this batch", ["some of its texts are causal and others are not"])
        pages = None if self.encoder_only else common.block_table_tensor.cpu()
        starts, keys = common.query_start_loc_cpu.tolist(), common.seq_lens.tolist()
        return Step(starts, keys, pages, common.causal, common.slot_mapping)


class Impl(AttentionImpl):  # type: ignore[misc]
    """The attention of one layer; vLLM makes it with the layer, and calls it in every step."""

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        sinks: Tensor | None = None,
    ) -> None:
        refuse(
            "a layer of this model",
            reasons_against_layer(
                attn_type, kv_cache_dtype, torch.get_default_dtype(), kv_sharing_target_layer_name, sliding_window
            ),
        )
        self.num_heads, self.head_size, self.scale = num_heads, head_size, float(scale)
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.kv_cache_dtype, self.attn_type = kv_cache_dtype, attn_type
        self.kv_sharing_target_layer_name = kv_sharing_target_layer_name
        self.sliding_window = -1 if sliding_window is None else sliding_window
        self.sinks = sinks
        self.settings = LayerSettings.read(scale, sliding_window, logits_soft_cap, alibi_slopes)
        self.patterns = {causal: self.settings.pattern(causal) for causal in (False, True)}
        self.observable = attn_type != AttentionType.ENCODER_DECODER  # its queries have other positions than its keys
        self.keeps = attn_type not in (AttentionType.ENCODER, AttentionType.ENCODER_ONLY)
        self.stored: tuple[Tensor, Tensor, Tensor] | None = None  # the layer's cache, its keys and its values

    def do_kv_cache_update(
        self, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write the keys and values of a step's tokens, ``(T, Hkv, D)``, to their slots."""
        if not self.keeps:
            return
        write(kv_cache, slot_mapping, key, value)

    def forward(
        self,
        layer: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        kv_cache: Tensor,
        attn_metadata: Step | None,
        output: Tensor,
        output_scale: Tensor | None = None,
        output_block_scale: Tensor | None = None,
    ) -> Tensor:
        """Attention of a step's queries ``(T, Hq, D)``, written to ``output`` ``(T, Hq, D)``, which is returned."""
        if output_scale is not None or output_block_scale is not None:
            refuse("this layer", ["outputs that are quantized in the same pass are not written"])
        if attn_metadata is None:  # vLLM runs the model without a step, to measure its memory and to compile
            if self.keeps:
                settle(kv_cache)
            return output.zero_()
        step, count = attn_metadata, attn_metadata.starts[-1]
        if self.keeps:
            if self.stored is None or self.stored[0] is not kv_cache:
                settle(kv_cache)
                self.stored = (kv_cache, *halves(kv_cache))
            _, keys, values = self.stored
        else:
            keys, values = (x[:count].transpose(0, 1)[None] for x in (key, value))
        queries = heads_of(query, count)
        watched = vllm_watch.chosen(layer.layer_name, len(step.key_lengths)) if self.observable else None
        if watched:
            self._observe(layer.layer_name, queries, keys, values, step, watched, output)
        else:
            repeated = step.repeated.get(self.settings)
            if repeated is None:
                repeated = step.repeated[self.settings] = Repeated(self._settings_of(step))
            repeated.into(heads_of(output, count), queries, keys, values, self.sinks)
        return output

    def _settings_of(self, step: Step) -> Settings:
        """The settings of a call in a step, without the sink."""
        scores, scale = self.settings.scores, self.settings.scale
        return Settings(layout=step.layout, pattern=self.patterns[step.causal], scores=scores, scale=scale)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, step: Step, observe: Observe | None
    ) -> tuple[Tensor, Observations | None]:
        """The output ``(T, Hq, D)`` of a step's queries, and what is observed."""
        settings = self._settings_of(step).replace(sink=self.sinks, observe=observe)
        result = attention(query, key, value, **settings.__dict__)
        output, seen = (result, None) if isinstance(result, Tensor) else result
        return output[0].transpose(0, 1), seen

    def _observe(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, step: Step, watched: dict[int, Record],
        output: Tensor,
    ) -> None:  # fmt: skip
        """Attention in a call for each kind of observation, and in one for the texts that are not observed."""
        groups: dict[Wanted | None, list[int]] = {}
        for row in range(len(step.key_lengths)):
            groups.setdefault(watched[row].wanted if row in watched else None, []).append(row)
        for wanted, rows in groups.items():
            tokens, part = step.part(rows)
            keys, values = (key, value) if self.keeps else (key[:, :, tokens], value[:, :, tokens])
            observe = None if wanted is None else wanted.observe()
            output[tokens], seen = self._attend(query[:, :, tokens], keys, values, part, observe)
            if seen is not None:
                fields = split(seen, part.query_lengths, part.key_lengths)
                for row, queries, length, found in zip(rows, part.query_lengths, part.key_lengths, fields, strict=True):
                    watched[row].add(name, length - queries, found)


def heads_of(tokens: Tensor, count: int) -> Tensor:
    """The first ``count`` of ``(T, H, D)`` tokens, ``(1, H, count, D)``."""
    return (tokens if len(tokens) == count else tokens[:count]).transpose(0, 1).unsqueeze(0)


def halves(kv_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values, ``(pages, Hkv, size, D)``, of a cache ``(pages, Hkv, size, 2 D)``, as `Impl` fills it."""
    pages, heads, size, width = kv_cache.shape
    both = kv_cache.view(pages, heads, 2 * size, width // 2)
    return both[:, :, :size], both[:, :, size:]


class Slots(NamedTuple):
    """Where a cache takes the tokens of a step.

    Attributes:
        mapping: ``(T + padding,)`` slots; the padding behind the tokens is below zero.
        tokens: ``T``.
        rows: ``(T * 2 Hkv,)``, for each token the rows of ``D`` numbers that its keys become, then those of its values.
    """

    mapping: Tensor
    tokens: int
    rows: Tensor

    @classmethod
    def of(cls, mapping: Tensor, heads: int, size: int, of_page: int) -> Slots:
        """In pages of ``size`` keys that begin ``of_page`` rows apart."""
        tokens = int((mapping >= 0).sum())
        slots = mapping[:tokens]
        first = slots + slots // size * (of_page - size)  # of the token's key in head 0
        keys = first[:, None] + torch.arange(0, heads * 2 * size, 2 * size, device=mapping.device)
        return cls(mapping.clone(), tokens, torch.cat((keys, keys + size), 1).flatten())


#: Of the last step, for each form of a cache: the layers of a model write to the same slots.
_slots: dict[tuple[int, int, int], Slots] = {}


def write(kv_cache: Tensor, mapping: Tensor, key: Tensor, value: Tensor) -> None:
    """Write keys and values ``(T, Hkv, D)`` of tokens to the slots ``mapping`` ``(T,)`` of a cache: see `halves`."""
    pages, heads, size, width = kv_cache.shape
    D, of_page = width // 2, kv_cache.stride(0)
    if of_page % D:
        refuse("this cache", [f"its pages begin {of_page} elements apart, no multiple of the width {D}"])
    form = heads, size, of_page // D
    slots = _slots.get(form)
    if slots is None or not torch.equal(slots.mapping, mapping):
        slots = _slots[form] = Slots.of(mapping, *form)
    both = torch.cat((key, value), 1)
    if len(both) != slots.tokens:
        both = both[: slots.tokens]
    rows = kv_cache.as_strided(((pages - 1) * form[2] + heads * 2 * size, D), (D, 1))
    rows.index_copy_(0, slots.rows, both.view(-1, D).to(rows.dtype))
