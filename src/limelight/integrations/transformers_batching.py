"""Continuous batching of transformers: many texts at once, each token of each of them in one call without a mask."""

from __future__ import annotations

import functools
from typing import Any

import transformers

from ..backends.contract import BackendError
from .transformers_report import NAME

_SINCE = (5, 24)
_SWITCH = "switch_to_cb_friendly_attn"


def enable_batching() -> None:
    """Let ``model.generate_batch`` and ``init_continuous_batching`` run with ``attn_implementation="limelight"``.

    ::

        enable()
        enable_batching()
        model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="limelight")
        model.generate_batch([[1, 15, 27], [1, 9]], generation_config=settings)

    transformers (5.24 and later) has a list of the implementations that it takes, others than flash attention with a
    mask of all queries times all keys of a batch; this adds ours, without a mask: the texts of a batch are `Packed`.
    Calling it again changes nothing.

    Raises:
        BackendError: an earlier version of transformers is installed.
    """
    if tuple(map(int, transformers.__version__.split(".")[:2])) < _SINCE:
        raise BackendError(
            f"enable_batching needs transformers 5.24 or later, but {transformers.__version__} is installed. Install "
            "another version, or use model.generate."
        )
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    choose = getattr(ContinuousBatchingManager, _SWITCH)
    if hasattr(choose, "__wrapped__"):
        return

    @functools.wraps(choose)
    def choose_ours(self: Any, model: Any, *args: Any, **others: Any) -> None:
        if model.config._attn_implementation != NAME:
            choose(self, model, *args, **others)

    setattr(ContinuousBatchingManager, _SWITCH, choose_ours)
