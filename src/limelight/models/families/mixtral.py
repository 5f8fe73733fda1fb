"""Mixtral (Jiang et al. 2024, arXiv:2401.04088): Mistral with a mixture of experts, two for each token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.rules import KeyRule, KeyRules
from ...forms.patterns import Causal
from ...nn import MixtureOfExperts, TopK
from ..config import Config, recipe
from ..decoder_only import DecoderOnly
from .decoder import attention_rules, decoder, shared_fields, window, window_length
from .family import Family
from .heads import head_rule
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published Mixtral."""
    published = published.with_defaults(
        num_key_value_heads=8, max_position_embeddings=131_072, rms_norm_eps=1e-5, rope_theta=1_000_000.0
    )
    length = published.or_none("sliding_window")
    config = decoder(
        published,
        "mixtral",
        patterns=[Causal() if length is None else window(length)],
        bias=False,
        output_bias=False,
    )
    router = recipe(
        TopK,
        k=published.whole("num_experts_per_tok", 2),
        jitter=published.probability("router_jitter_noise", 0.0),
    )
    dense = config.feed_forward
    experts = recipe(
        MixtureOfExperts,
        inner=dense["inner"],
        activation=dense["activation"],
        experts=published.parts("num_local_experts", 8, layers=config.layers),
        router=router,
        balance=published.coefficient("router_aux_loss_coef", 0.001),
        z=published.coefficient("router_z_loss_coef", 0.0),
    )
    return replace(config, feed_forward=experts)


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Mixtral."""
    experts = config.feed_forward
    return {
        "architectures": [f"Mixtral{class_suffix(config.head)}"],
        "sliding_window": window_length(config.attentions[0]["pattern"]),
        "num_local_experts": experts["experts"],
        "num_experts_per_tok": experts["router"]["k"],
        "router_jitter_noise": experts["router"]["jitter"],
        "router_aux_loss_coef": experts["balance"],
        **({"router_z_loss_coef": experts["z"]} if experts["z"] else {}),
        **shared_fields(config),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    layer, feed_forward = "model.layers.{n}", "layers.{n}.feed_forward"
    experts = tuple(
        KeyRule(
            f"{layer}.block_sparse_moe.experts.{{e}}.{their}.{{p}}", f"{feed_forward}.inner.experts.{{e}}.{our}.{{p}}"
        )
        for their, our in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
    )
    return KeyRules(
        *attention_rules(),
        KeyRule(f"{layer}.post_attention_layernorm.weight", f"{feed_forward}.norm.weight"),
        KeyRule(f"{layer}.block_sparse_moe.gate.weight", f"{feed_forward}.inner.router.weight"),
        *experts,
        head_rule(config, "lm_head.weight"),
        prefix="model.",
        bare=config.head is None,
    )


MIXTRAL = Family(
    "mixtral",
    DecoderOnly,
    configure,
    publish,
    rules,
    default_tokens={"bos_token_id": 1, "eos_token_id": 2},
)
