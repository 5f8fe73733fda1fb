"""Models of transformers on texts whose tokens lie on several processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..backends.contract import BackendError
from ..distributed import ContextParallel
from ..forms.patterns import Causal, Chunks, Pattern, Window
from ..tensors.shapes import describe, wrong
from ..tensors.tracing import readable
from .transformers_masks import MaskFunction, Reading, Sight, conjuncts, intersection, sight_of, without_documents
from .transformers_report import NAME, report

_entered: dict[int, ContextParallel] = {}  # by the thread; dynamo reads no ContextVar


@contextmanager
def context_parallel(model: nn.Module, spread: ContextParallel) -> Iterator[None]:
    """Forward passes of a model inside are of a text whose tokens lie on several processes.

    Each process gives its own tokens and their positions::

        spread = ContextParallel.balanced(group, length, patterns=patterns_of(model), layout=Packed(lengths))
        with context_parallel(model, spread):
            logits = model(input_ids=spread.mine(ids), position_ids=spread.positions, use_cache=False).logits

    The layers' causal masks, windows, chunks, sinks and soft caps hold as in one process; documents and padding are
    those of ``spread.of``, in the place of an ``attention_mask``. All processes make the same calls. A loss is the sum
    over the own tokens, with targets shifted before they are divided (``shift_labels=spread.mine(shifted)``, beside
    ``labels``); gradients of parameters are added up over the processes. The backward pass may come after the context.

    Holds for the thread that enters it. Losses that balance experts are computed from each process's tokens alone.

    Args:
        model: with ``attn_implementation="limelight"``; also wrapped (DDP, FSDP).
        spread: of the whole text, the same on all processes.

    Raises:
        ArgumentError: a model in which something other than attention reads other tokens, or whose attention is not
            computed by Limelight; a context within another. In a forward pass: inputs that are not those of the own
            tokens.
        BackendError: in a forward pass: a padding mask, a cache, a mask that is not put together from known parts.
    """
    if not isinstance(spread, ContextParallel):
        raise wrong("spread", "must be a ContextParallel", f"it is {describe(spread)}", "See limelight.distributed.")
    if active() is not None:
        raise wrong("spread", "must be the only one", "a context_parallel is entered already", "Leave it before.")
    _check_model(model, spread)
    hook = model.register_forward_pre_hook(_check_inputs, with_kwargs=True)
    _entered[threading.get_ident()] = spread
    try:
        yield
    finally:
        del _entered[threading.get_ident()]
        hook.remove()


def patterns_of(model: PreTrainedModel) -> list[Pattern | None]:
    """The patterns of a decoder's attention layers by its configuration, for `ContextParallel.balanced`.

    They are used to count pairs of query and key; what a layer computes is decided by its own mask.

    Args:
        model: a decoder; or an encoder, whose layers see everything but for their windows.

    Raises:
        ArgumentError: the configuration names no layers.
    """
    config = model.config.get_text_config()
    layers, window = getattr(config, "num_hidden_layers", None), getattr(config, "sliding_window", None)
    if not layers:
        got = f"{type(model).__name__} has none"
        raise wrong("model", "must have a configuration with num_hidden_layers", got, "Name the patterns yourself.")
    causal = any(getattr(module, "is_causal", False) for module in model.modules())
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * layers
    found: list[Pattern | None] = []
    for kind in kinds:
        parts: list[Pattern] = [Causal()] if causal else []
        if kind == "sliding_attention" and window:
            parts.append(Window(window - 1, None if causal else window - 1))
        if kind == "chunked_attention":
            parts.append(Chunks(config.attention_chunk_size))
        found.append(intersection(parts))
    return found


def active() -> ContextParallel | None:
    """The layout of the `context_parallel` that this thread has entered."""
    if not _entered:
        return None
    if torch.compiler.is_compiling():
        raise BackendError("A model cannot be compiled inside context_parallel, whose exchange no graph would hold.")
    return _entered.get(threading.get_ident())


# --- Before anything is computed --------------------------------------------------------------------------------------

# Layers that compute a token from its neighbours.
_NEIGHBOURS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.RNNBase)
# Models that choose a token of each text.
_CHOOSING = ("ForSequenceClassification", "ForMultipleChoice", "ForNextSentencePrediction", "DoubleHeadsModel")


def _check_model(model: nn.Module, spread: ContextParallel) -> None:
    """Refuse a model in which something other than Limelight's attention reads other tokens."""
    layers = report(model)
    why = None
    if layers.own:
        name, reason = next(iter(layers.own.items()))
        why = f"{name or type(model).__name__}: {reason}"
    elif not layers.served:
        why = "it has no attention layer that transformers' registry serves"
    for name, module in model.named_modules():
        if isinstance(module, _NEIGHBOURS):
            why = why or f"{name} ({type(module).__name__}) computes a token from its neighbours"
        if name.rsplit(".", 1)[-1] == "pooler":
            why = why or f"{name} makes one vector of a text (add_pooling_layer=False leaves it out)"
        if isinstance(module, PreTrainedModel):
            why = why or _reason_in(module, spread)
    if why is not None:
        way_out = "Run this model in one process."
        raise wrong("model", "must read other tokens by Limelight's attention alone", f"of {why}", way_out)


def _reason_in(model: PreTrainedModel, spread: ContextParallel) -> str | None:
    """What in a model's class or configuration depends on other tokens."""
    kind, config = type(model).__name__, model.config
    if kind.endswith(_CHOOSING):
        return f"{kind}, which chooses one token of each text"
    if getattr(config, "is_encoder_decoder", False):
        return f"{kind}, whose decoder reads an encoder"
    rope = getattr(config, "rope_parameters", None) or {}
    for one in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if one.get("rope_type") in ("dynamic", "longrope"):
            original = one.get("original_max_position_embeddings") or config.max_position_embeddings
            if int(spread.text_lengths(spread.positions).max()) > original:
                return f"{kind}, whose rotary positions ({one['rope_type']}) depend on the length beyond {original}"
    return None


def _check_inputs(model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
    """Refuse inputs that are not those of the own tokens; a hook before each forward pass of the model."""
    spread = active()
    if spread is None:  # another thread
        return
    positions: Tensor | None = inputs.get("position_ids")
    expected = spread.positions
    fits = positions is not None and positions.dim() == 2 and positions.shape[1] == expected.shape[1]
    if positions is not None and fits and readable(positions):
        fits = bool((positions == expected.to(positions.device)).all())
    if not fits:
        got = "it is None" if positions is None else f"it is {describe(positions)}"
        rule = "must hold the positions of the tokens of this process"
        raise wrong("position_ids", rule, got, "Give position_ids=spread.positions, on the model's device.")
    whole = next((part for part in model.modules() if isinstance(part, PreTrainedModel)), None)
    masked = "ForMaskedLM" in type(whole).__name__
    if inputs.get("labels") is not None and inputs.get("shift_labels") is None and not masked:
        raise wrong(
            "labels",
            "must come with `shift_labels` under context_parallel",
            "the model would shift them within the tokens of this process",
            "Shift the labels of the whole text and give shift_labels=spread.mine(shifted), or use the logits.",
        )


# --- In a forward pass ------------------------------------------------------------------------------------------------


class _Known(Reading):
    """Reads mask functions whose meaning is known, for queries and keys that lie on several processes."""

    def evaluate(self, function: MaskFunction) -> Tensor:
        name = getattr(function, "__qualname__", function)
        raise BackendError(
            f"context_parallel cannot serve the mask function {name}, which goes by indices of the whole text. It "
            "reads causal masks, sliding windows, chunks and packed documents."
        )


def read_spread(
    spread: ContextParallel,
    mask_function: MaskFunction,
    size: tuple[int, int, int],
    offsets: tuple[int | Tensor, int],
    padding: Tensor | None,
    device: torch.device | str,
) -> Sight:
    """The pattern of a mask function of transformers under the layout of a `context_parallel`.

    Args:
        spread: the layout.
        mask_function: of the model.
        size: ``(B, Lq, Lk)``, of this process.
        offsets: of the first query and of the first key; 0 without a cache.
        padding: ``(B, n)`` bool, true where the token exists.
        device: where the mask is wanted.
    """
    B, Lq, Lk = size
    if Lq != Lk or any(int(offset) for offset in offsets):
        raise BackendError(
            f"context_parallel cannot serve a cache or attention to another text: {Lq} queries and {Lk} keys, from "
            f"{int(offsets[0])} and {offsets[1]} on. Run a whole text at once; generate in one process."
        )
    if padding is not None and (padding.dim() != 2 or not bool(padding.all())):
        raise BackendError(
            "context_parallel cannot serve an attention_mask with padding: a process has the mask of its own tokens "
            "alone. Give the layout of the whole text: ContextParallel(..., of=Padded(lengths))."
        )
    spread.check(B, Lq, Lk)
    reading = _Known((B, Lq, Lk), 0, 0, False, torch.device(device))
    # What the model takes for documents are runs of positions of this process: `spread.of` holds the documents.
    _, parts = without_documents(conjuncts(mask_function))
    return Sight(size, reading.device, Lk, spread, intersection([reading.pattern(part) for part in parts]))


def check_call(
    module: nn.Module, mask: Tensor | None, bias: Tensor | None, indices: Tensor | None, weights: bool
) -> None:
    """Refuse an attention call that cannot be served for tokens on several processes.

    Args:
        module: the layer.
        mask: of the call.
        bias: `position_bias` of the call.
        indices: keys chosen for each query.
        weights: whether the weights are returned.
    """
    sight = sight_of(mask)
    spread = sight is not None and sight.layout is not None and sight.layout.spread
    if not spread and active() is None:
        return
    why = None
    if not spread:
        why = "it gave no description of its mask, so its pattern in the whole text is not known"
    elif bias is not None:
        why = "it adds a position bias, whose columns lie on several processes"
    elif indices is not None:
        why = "it chooses keys by their indices, which are those of this process"
    elif weights:
        why = "output_attentions=True asks for weights whose columns lie on several processes. Use limelight.watching"
    if why is not None:
        raise BackendError(
            f"attn_implementation={NAME!r} cannot serve {type(module).__name__} under context_parallel: {why}."
        )
