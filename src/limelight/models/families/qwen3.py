"""Qwen 3 (Yang et al. 2025, arXiv:2505.09388): Llama with norms of queries and keys, and a window in some layers."""

from __future__ import annotations

from typing import Any

from ...formats.rules import KeyRule, KeyRules
from ...forms.patterns import Causal, Pattern
from ...nn import RMSNorm
from ..config import Config, recipe
from ..decoder_only import DecoderOnly
from .decoder import decoder, decoder_rules, layer_kinds, layer_windows, shared_fields, window
from .family import Family
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published Qwen 3."""
    bias = published.flag("attention_bias", False)
    return decoder(
        published.with_defaults(head_dim=128, max_position_embeddings=32_768),
        "qwen3",
        patterns=_patterns(published),
        head_norm=recipe(RMSNorm, epsilon=published.number("rms_norm_eps", 1e-6)),
        bias=bias,
        output_bias=bias,
    )


def _patterns(published: Published) -> list[Pattern]:
    """The pattern of each layer: causal, or a window from layer ``max_window_layers`` on if windows are enabled."""
    layers = published.layers("num_hidden_layers")
    length = published.or_none("sliding_window", 4096) if published.flag("use_sliding_window", False) else None
    first = published.token("max_window_layers", 28)
    narrow = [length is not None and number >= first for number in range(layers)]
    narrow = layer_windows(published, layers, narrow)
    return [window(published.whole("sliding_window", 4096)) if one else Causal() for one in narrow]


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Qwen 3."""
    return {
        "architectures": [f"Qwen3{class_suffix(config.head)}"],
        "attention_bias": config.attentions[0]["bias"],
        **layer_kinds(config),
        **shared_fields(config),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    plain = decoder_rules(config)
    norms = tuple(
        KeyRule(
            f"model.layers.{{n}}.self_attn.{letter}_norm.weight", f"layers.{{n}}.attention.inner.{name}_norm.weight"
        )
        for letter, name in (("q", "query"), ("k", "key"))
    )
    return KeyRules(*plain.rules, *norms, prefix=plain.prefix, bare=plain.bare)


QWEN3 = Family("qwen3", DecoderOnly, configure, publish, rules)
