"""Limelight underneath the models of Hugging Face transformers.

::

    from limelight.integrations.transformers import enable

    enable()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="limelight")

or, for a model that is there already, ``model.set_attn_implementation("limelight")``. Logits are those of ``eager``;
rows of padding, which see nothing, are zero where ``eager`` averages over everything. So are the weights that
``output_attentions=True`` returns, which take ``B * Hq * Lq * Lk`` numbers for each layer.

`report` says which layers of a model go through the registry and which have attention of their own; `account` says
how the masks of a run were read; `limelight.watching` observes every layer by its name; `context_parallel` runs a model
on texts whose tokens lie on several processes; `enable_batching` lets ``model.generate_batch`` use Limelight;
`KeptCache` is a cache that keeps the keys that a policy chooses, `EightBitCache` one of 8 bits.
"""

from __future__ import annotations

import re
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils
from transformers.utils.import_utils import is_tracing

from ..backends.contract import BackendError
from ..forms.layouts import Aligned, KeyMask, Layout
from ..forms.observations import Observations, Observe, current_watcher
from ..forms.patterns import Causal, Explicit, Full, Pattern, Window
from ..forms.scores import Bias, ScoreRule, SoftCap
from ..operator.attention import attention
from ..tensors import tracing
from ..tensors.shapes import describe, wrong
from .account import Account, account, current
from .names import of_layer
from .transformers_batching import enable_batching
from .transformers_bias import PositionBias, leave_unwritten
from .transformers_caches import EightBitCache, KeptCache, layer_of
from .transformers_context import active, check_call, context_parallel, patterns_of, read_spread
from .transformers_documents import documents_of, packed_of
from .transformers_masks import Mask, MaskFunction, read, sight_of, written
from .transformers_report import NAME, Report, report
from .weights import attend as attend_whole
from .weights import share_of_keys

__all__ = [
    "NAME", "EightBitCache", "KeptCache", "Report", "account", "context_parallel", "enable", "enable_batching",
    "patterns_of", "report",
]  # fmt: skip


def enable() -> None:
    """Register Limelight with transformers under the name ``"limelight"``: its attention and its masks."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, describe_mask)


# --- The mask function -----------------------------------------------------------------------------------------------


def describe_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    config: Any = None,
    **_: Any,
) -> Tensor:
    """The mask of one forward pass, described once and handed by the model to every layer.

    Called by transformers, whose arguments these are (``masking_utils.eager_mask``). Never ``None``, so that a layer
    without a mask is one for which no mask was described.
    """
    spread = active()
    if spread is not None:
        size = (int(batch_size), int(q_length), int(kv_length))
        return Mask.of(read_spread(spread, mask_function, size, (q_offset, kv_offset), attention_mask, device), dtype)
    # A traced graph needs tensors: a description cannot be read while it is traced. On accelerators, `generate` makes
    # the masks of a static cache (which counts in a tensor) in advance, for a forward pass that it compiles.
    if is_tracing(attention_mask) or (isinstance(q_offset, Tensor) and q_offset.device.type != "cpu"):
        return masking_utils.eager_mask(
            batch_size=batch_size, q_length=q_length, kv_length=kv_length, q_offset=cast(int, q_offset),
            kv_offset=kv_offset, mask_function=mask_function, attention_mask=attention_mask, dtype=dtype,
            use_vmap=use_vmap, device=device,
        )  # fmt: skip
    # int(): the tensor in which a static cache counts changes before the layers read the mask.
    size = (int(batch_size), int(q_length), int(kv_length))
    sight = read(mask_function, size, int(q_offset), int(kv_offset), attention_mask, use_vmap, device)
    if config is not None:
        leave_unwritten(type(config), NAME)
    calls = current()
    if calls is not None:
        calls.notes.update(sight.notes)
    # On CPUs `generate` may compile. A graph made for a description would hold for its lengths alone,
    # so it gets numbers, for the next token at least; layers that are not compiled read the description beside them.
    return written(sight, dtype) if isinstance(q_offset, Tensor) and size[1] == 1 else Mask.of(sight, dtype)


# --- The attention function ------------------------------------------------------------------------------------------


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sinks: Tensor | None = None,
    position_bias: Tensor | None = None,
    indices: Tensor | None = None,
    position_ids: Tensor | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """One attention call of a model: ``(B, Hq, Lq, D)`` and ``(B, Hkv, Lk, D)`` to ``(B, Lq, Hq, Dv)``.

    Called by the model's layers, whose arguments these are. The second result is the weights ``(B, Hq, Lq, Lk)`` where
    ``output_attentions=True`` asks for them, as ``eager`` returns them: in the dtype of the output, after dropout, the
    sink left out.

    Args:
        module: the layer; its training mode decides on the dropout, its place in the model is the call's name.
        query: after rotary positions; keys and values come from the cache, not repeated for their groups.
        key: ``(B, Hkv, Lk, D)``, after rotary positions.
        value: ``(B, Hkv, Lk, Dv)``.
        attention_mask: a `Mask`; or a bool tensor, true where seen; or a float tensor to be added to the scores.
        dropout: probability, applied in training.
        scaling: factor of the dot product.
        is_causal: read only when no mask was described.
        sliding_window: read only when no mask was described.
        softcap: the limit of `SoftCap`.
        s_aux: ``(Hq,)`` logits of the sinks, one for each head.
        sinks: ``(B, Hq, Lq, 1)`` logits of sinks, one for each query.
        position_bias: added to the scores (T5).
        indices: ``(B, Lq, k)`` keys that a sparse indexer chose for each query.
        position_ids: ``(B | 1, Lq)``, read only when no mask was described: where they begin again, a document does
            (DeepSpeed's Ulysses hands on packed documents so).
        cu_seq_lens_q: ``(N + 1,)``, read only when no mask was described: where the queries of each document begin and
            the last one's end (continuous batching).
        cu_seq_lens_k: ``(N + 1,)``, the same of its keys; its last query stands at its last key.
        others: what the models pass beside; what would change the result and is not known raises.

    Raises:
        BackendError: something is asked for that fused attention cannot give.
    """
    _refuse(others)
    check_call(module, attention_mask, position_bias, indices, _weights_wanted(others))
    kept = layer_of(key)
    B, Lq, Lk = query.shape[0], query.shape[2], key.shape[2] if kept is None else kept.seen
    if key.shape[0] != B:  # learned queries of one row, shared by the batch
        B = max(B, key.shape[0])
        query, key, value = (x.expand(B, -1, -1, -1) for x in (query, key, value))
    documents = None
    if attention_mask is None:
        starts = (cu_seq_lens_q, cu_seq_lens_k)
        documents = packed_of(*starts, Lq, Lk) or (documents_of(position_ids, B, Lq, Lk) if Lq > 1 else None)
    layout, pattern, scores, keys = _mask_parts(module, attention_mask, B, Lq, Lk, is_causal, sliding_window, documents)
    if keys < Lk and kept is None:
        key, value = key[:, :, :keys], value[:, :, :keys]
    if position_bias is not None:
        scores.insert(0, _position_bias(position_bias, layout, Lq, keys))
    if softcap is not None:
        scores.insert(0, SoftCap(softcap))
    if indices is not None:
        chosen = torch.zeros((B, 1, Lq, Lk), dtype=torch.bool, device=query.device)
        chosen = chosen.scatter_(-1, indices.long()[:, None], True)[..., :keys]
        pattern = Explicit(chosen) if pattern is None else pattern & Explicit(chosen)
    if s_aux is not None:
        s_aux = s_aux.reshape(-1)
    watched = current_watcher(bool(tracing.recorder(query))) is not None
    if sinks is not None and watched:
        raise BackendError(
            f"attn_implementation={NAME!r} cannot observe {type(module).__name__}: it has a sink for each query, which "
            "the observations would leave out. Run it without limelight.watching."
        )
    calls = current()
    if calls is not None:
        _tell(calls, attention_mask, layout, pattern, scores, s_aux)
    arguments: dict[str, Any] = {
        "layout": layout, "pattern": pattern, "scores": scores, "sink": s_aux, "scale": scaling,
        "dropout": dropout if module.training else 0.0, "name": of_layer(module) if watched else None,
    }  # fmt: skip
    weights = None
    if kept is not None:
        refused = {"output_attentions": _weights_wanted(others), "sinks": sinks is not None}
        for name in (name for name, wanted in refused.items() if wanted):
            raise BackendError(f"{kept.cache} cannot serve `{name}` of {type(module).__name__}. Use a DynamicCache.")
        del arguments["layout"]
        output = kept.attend(query, key, value, layout, arguments)
    elif _weights_wanted(others):
        output, weights = attend_whole(query, key, value, calls=calls, sinks=sinks, **arguments)
        if keys < Lk:
            weights = nn.functional.pad(weights, (0, Lk - keys))
    elif sinks is not None:
        output, seen = cast(
            tuple[Tensor, Observations], attention(query, key, value, observe=Observe(logsumexp=True), **arguments)
        )
        output = (output * share_of_keys(seen, sinks)).to(output.dtype)
    else:
        output = cast(Tensor, attention(query, key, value, **arguments))
    return output.transpose(1, 2).contiguous(), weights


def _mask_parts(
    module: nn.Module,
    mask: Tensor | None,
    B: int,
    Lq: int,
    Lk: int,
    is_causal: bool | None,
    sliding_window: int | None,
    documents: Layout | None,
) -> tuple[Layout | None, Pattern | None, list[ScoreRule], int]:
    """Layout, pattern and score rules of a mask, or of documents without one; the number of keys that they cover."""
    sight = sight_of(mask)
    if sight is not None and sight.size == (B, Lq, Lk):
        return sight.layout, sight.pattern, [], sight.keys
    if mask is not None:
        numbers = _written_out(mask)[..., :Lk]
        if numbers.dtype != torch.bool:
            return None, None, [Bias(numbers)], Lk
        if numbers.dim() == 4 and numbers.shape[1:3] == (1, 1):
            return KeyMask(numbers[:, 0, 0]), None, [], Lk
        return None, Explicit(numbers), [], Lk
    if (Lq == 1 and documents is None) or not (getattr(module, "is_causal", False) if is_causal is None else is_causal):
        return documents, None, [], Lk
    # Without a mask the flag has PyTorch's meaning: the first query is aligned with the first key.
    pattern: Pattern = Causal()
    if sliding_window is not None:
        pattern = pattern & Window(sliding_window - 1, None)
    return Aligned(query_start=0) if documents is None else documents, pattern, [], Lk


def _position_bias(bias: Tensor, layout: Layout | None, Lq: int, keys: int) -> ScoreRule:
    """The score rule of a position bias: by distance if its positions are those of the layout, else a bias of pairs."""
    if (
        isinstance(bias, PositionBias)
        and bias.shape[2] == Lq
        and bias.past == (layout or Aligned()).index_offset(Lq, keys)
    ):
        return bias.rule()
    return Bias(bias[..., :keys])


def _written_out(mask: Tensor) -> Tensor:
    """A mask of numbers, as bool where it holds only 0 and minus infinity, so that unseen blocks are skipped."""
    if isinstance(mask, Mask):
        return mask.sight.seen
    if mask.dtype == torch.bool:
        return mask
    if not mask.is_floating_point():
        raise wrong(
            "attention_mask",
            "must be bool, true where a query sees a key, or float, added to the scores",
            f"it is {describe(mask)}",
            "Convert it with .bool(), or give the model a (B, Lk) mask.",
        )
    if mask.requires_grad or torch.compiler.is_compiling():
        return mask
    seen = mask == 0
    return seen if bool((seen | (mask <= torch.finfo(mask.dtype).min)).all()) else mask


def _weights_wanted(others: dict[str, Any]) -> bool:
    """Whether the model returns the weights, by an argument of the call or among the outputs that it collects."""
    collected = _collector.get() if _collector is not None else None
    return bool(others.get("output_attentions")) or any("attentions" in key for key in collected or ())


# Where transformers stores which outputs a forward pass collects: some models request weights only there.
_collector = getattr(sys.modules.get("transformers.utils.output_capturing"), "_active_collector", None)

# Arguments that change the result and that are not known, with what helps.
_REFUSED = {
    "cache": "paged caches of continuous batching are read from transformers 5.24 on, after enable_batching()",
    "block_indices": "block-sparse selections are not read yet. Use another implementation for this model",
    "head_mask": "single heads cannot be switched off. Multiply the output projection's columns instead",
}


def _refuse(others: dict[str, Any]) -> None:
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        raise BackendError(
            f"attn_implementation={NAME!r} cannot be recorded by torch.jit.trace, which would keep the numbers of this "
            "very call. Use torch.export, or another implementation."
        )
    for name, why in _REFUSED.items():
        asked = others.get(name)
        if asked is not None and asked is not False:
            raise BackendError(f"attn_implementation={NAME!r} cannot serve `{name}`: {why}.")


# --- The account ---------------------------------------------------------------------------------------------------


def _tell(
    calls: Account,
    mask: Tensor | None,
    layout: Layout | None,
    pattern: Pattern | None,
    scores: list[ScoreRule],
    sink: Tensor | None,
) -> None:
    what = [f"{pattern or Full()} under {type(layout or Aligned()).__name__}", *map(repr, scores)]
    if sink is not None:
        what.append("a sink")
    calls.taken[_SIZES.sub("", ", ".join(what))] += 1
    if isinstance(mask, Mask) and mask.touched:
        calls.notes[f"the model computes with its mask ({mask.touched}), so it was written out"] += 1
    elif mask is not None and sight_of(mask) is None:
        calls.notes[f"the model gave a {mask.dtype} tensor instead of a description, and all its pairs are read"] += 1
    elif mask is None:
        calls.notes["no mask was described"] += 1


# Tensors grow with every token, and tables of distances with them; what is asked for stays the same.
_SIZES = re.compile(r"\w+=<[^>]*>(, (fixed|buckets)=\w+(\([^)]*\))?)*")
