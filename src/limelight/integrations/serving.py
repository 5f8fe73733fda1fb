"""What a serving engine says of an attention layer and of its model, as settings of `limelight.attention`; its cache.

Nothing here imports an engine; `limelight.integrations.vllm_backend` does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from ..backends import huge_pages
from ..backends.contract import BackendError
from ..forms.patterns import Causal, Pattern, Window
from ..forms.scores import ALiBi, ScoreRule, SoftCap

_log = logging.getLogger("vllm.limelight")

#: Data types of caches that are read, and vLLM's word for that of the model.
CACHE_DTYPES = ("auto", "float32", "bfloat16", "float16")
#: How long a cache is moved into huge pages, in seconds.
SETTLE = 10.0
#: The memory of the caches that `settle` has seen, as long as they live.
_settled: WeakSet[torch.UntypedStorage] = WeakSet()
DECODER, ENCODER_ONLY, ENCODER, ENCODER_DECODER = "decoder", "encoder_only", "encoder", "encoder_decoder"


@dataclass(frozen=True)
class LayerSettings:
    """The settings of a layer's calls: score rules, scale, and the window of its pattern.

    Attributes:
        scale: factor of the dot product.
        window: tokens that a causal query sees, itself included; without a causal mask as many on either side, less
            one; ``None`` for all.
        scores: score rules.
    """

    scale: float
    window: int | None
    scores: tuple[ScoreRule, ...]

    @classmethod
    def read(
        cls,
        scale: float,
        window: int | None,
        soft_cap: float | None,
        alibi_slopes: Sequence[float] | Tensor | None,
    ) -> LayerSettings:
        """Settings from an engine's arguments, in which 0, -1 and ``None`` all mean that there is none."""
        rules: list[ScoreRule] = []
        if soft_cap:
            rules.append(SoftCap(float(soft_cap)))
        if alibi_slopes is not None:
            rules.append(ALiBi(torch.as_tensor(alibi_slopes, dtype=torch.float32)))
        return cls(float(scale), window if window is not None and window > 0 else None, tuple(rules))

    def pattern(self, causal: bool) -> Pattern | None:
        """What a query sees: `Causal`, `Window`, or ``None`` for every key."""
        if self.window is None:
            return Causal() if causal else None
        return Window(self.window - 1, 0 if causal else self.window - 1)


def reasons_against_layer(
    kind: str, cache_dtype: str, dtype: torch.dtype, shared_with: str | None, window: int | None
) -> list[str]:
    """Why a layer cannot be served; an empty list when it can.

    Args:
        kind: "decoder", "encoder", "encoder_only" or "encoder_decoder".
        cache_dtype: data type of the cache of keys and values, as the engine names it.
        dtype: that of the model.
        shared_with: the layer whose keys and values it reads instead of its own.
        window: as in `LayerSettings.read`.
    """
    reasons = []
    if kind not in (DECODER, ENCODER, ENCODER_ONLY, ENCODER_DECODER):
        reasons.append(f"attention of the type {kind!r} is not known")
    if cache_dtype not in ("auto", str(dtype).removeprefix("torch.")):
        reasons.append(
            f"keys and values stored as {cache_dtype!r} are not read beside queries of {dtype}; leave out "
            "--kv-cache-dtype, or set it to auto"
        )
    if kind == ENCODER_DECODER and window is not None and window > 0:
        reasons.append("cross-attention with a window is not defined")
    if shared_with is not None and kind != DECODER:
        reasons.append(f"only decoder layers can share keys and values, here those of {shared_with}")
    return reasons


def reasons_against_model(config: Any, layers: Iterable[Any], observed: bool) -> list[str]:
    """Why a model cannot be served under a configuration of vLLM; an empty list when it can.

    Args:
        config: vLLM's configuration.
        layers: its attention layers.
        observed: whether requests are observed.
    """
    reasons, model, parallel = [], config.model_config, config.parallel_config
    if model.is_mm_prefix_lm:
        reasons.append(
            "its images attend to themselves in both directions, which is not served; --language-model-only serves "
            "its texts"
        )
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        reasons.append("texts divided over several processes (context parallelism) are not served")
    for layer in layers:
        width, value_width = getattr(layer, "head_size", None), getattr(layer, "head_size_v", None)
        if value_width is not None and width != value_width:
            reasons.append(f"its values are {value_width} wide and its keys {width}, which its cache does not hold")
            break
    if observed:
        if config.speculative_config is not None:
            reasons.append(
                "speculative decoding computes tokens that are thrown away, which LIMELIGHT_OBSERVE cannot tell"
            )
        if config.use_v2_model_runner:
            reasons.append("LIMELIGHT_OBSERVE reads vLLM's model runner V1; set VLLM_USE_V2_MODEL_RUNNER=0")
    return reasons


def settle(kv_cache: Tensor) -> None:
    """Move the memory of a cache into huge pages, at most for ten seconds; once for all layers, which share it."""
    memory = kv_cache.untyped_storage()
    if memory in _settled:
        return
    _settled.add(memory)
    moved = huge_pages.use(kv_cache, SETTLE)
    if moved is None:
        _log.info("The system refuses huge pages for the cache of keys and values; decoding steps read it more slowly.")
    elif moved:
        _log.info("%.2f GiB of the cache of keys and values lie in huge pages now.", moved / 2**30)


def refuse(what: str, reasons: Iterable[str]) -> None:
    """Raise `BackendError` with all ``reasons`` for which ``what`` cannot be served, if there are any.

    Raises:
        BackendError: there is a reason.
    """
    found = "; ".join(reasons)
    if found:
        raise BackendError(
            f"Limelight cannot serve {what}: {found}. VLLM_PLUGINS= (empty) starts vLLM without its plugins, "
            "and with its own attention."
        )
