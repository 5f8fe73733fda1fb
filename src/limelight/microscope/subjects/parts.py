"""Parts of models of transformers: what lies below the head, its configurations, its positions, its output."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions


def body_of(model: Any) -> Any:
    """The part of a model below its head."""
    body = model.base_model
    if body is model and head_of(model) is not None:  # some name none
        parts = [child for child in model.children() if isinstance(child, PreTrainedModel)]
        body = parts[0] if len(parts) == 1 else model
    return body if model.main_input_name in inspect.signature(body.forward).parameters else model


def head_of(model: Any) -> Any:
    """The output embedding of a model; ``None`` where there is none."""
    try:
        return model.get_output_embeddings()
    except (NotImplementedError, AttributeError):
        return None


def table_of(*parts: Any) -> Tensor | None:
    """The table of input embeddings, ``(vocabulary, width)``, of the first part that has one."""
    for part in parts:
        try:
            table = getattr(part.get_input_embeddings(), "weight", None)
        except (NotImplementedError, AttributeError):
            continue
        if isinstance(table, Tensor) and table.dim() == 2:
            return table
    return None


def states_in(output: Any, seq2seq: bool) -> tuple[Tensor, ...]:
    """The hidden states of the main stack."""
    return tuple(getattr(output, "decoder_hidden_states" if seq2seq else "hidden_states", None) or ())


def configs_of(model: nn.Module) -> Iterator[Any]:
    """Every configuration that says how a part of the model computes its attention."""
    waiting = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    seen = set()
    while waiting:
        config = waiting.pop()
        if id(config) in seen or not hasattr(config, "_attn_implementation_internal"):
            continue
        seen.add(id(config))
        waiting += [inner for key in config.sub_configs if (inner := getattr(config, key, None)) is not None]
        yield config


def can_cache(stack: Any) -> bool:
    """Whether keys and values of earlier tokens can be kept, as if the whole text were read for every token.

    Not where the positions of earlier tokens are computed anew for a longer text (dynamic NTK, LongRoPE).
    """
    named = json.dumps(getattr(stack.config, "rope_parameters", None), default=str)
    takes = inspect.signature(stack.forward).parameters
    return "past_key_values" in takes and "use_cache" in takes and not re.search("dynamic|longrope", named)


def positions_of(stack: nn.Module) -> int | None:
    """The number of positions of a learned or stored table; ``None`` where positions are computed without an end."""
    for name, module in stack.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (last == "wpe" or "position" in last) and "relative" not in last:
            config = getattr(stack, "config", None)
            named = getattr(config, "max_position_embeddings", None)
            rows = module.num_embeddings
            if module.padding_idx is not None and rows == named:  # RoBERTa counts from behind the padding's id
                return int(rows - module.padding_idx - 1)
            return int(min(rows, named)) if isinstance(named, int) else int(rows)
    return None


@contextmanager
def giving(stacks: list[Any], given: Any) -> Iterator[None]:
    """Inside, a call of one of the stacks returns what is given without computing, so that the head alone runs."""
    unique = {id(stack): stack for stack in stacks}.values()
    before = [(stack, stack.__dict__.get("forward")) for stack in unique]
    try:
        for stack in unique:
            stack.forward = lambda *_, **__: given
        yield
    finally:
        for stack, own in before:
            stack.__dict__.pop("forward", None)
            if own is not None:
                stack.forward = own


class Given(BaseModelOutputWithPoolingAndCrossAttentions):
    """The output of a stack that was not run: nothing but states."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None
