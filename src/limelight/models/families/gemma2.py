"""Gemma 2 (Gemma Team 2024, arXiv:2408.00118): bent scores, a window in every other layer, norms on both sides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.rules import KeyRule, KeyRules
from ...forms.patterns import Causal
from ...forms.scores import SoftCap
from ...nn import ACTIVATIONS, RMSNorm, Sandwich, TokenEmbedding
from ..config import Config, Recipe, recipe
from ..decoder_only import DecoderOnly
from .decoder import attention_rules, decoder, feed_forward_rules, layer_kinds, layer_windows, shared_fields, window
from .family import Family
from .heads import head_rule
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published Gemma 2."""
    published = published.with_defaults(head_dim=256, num_key_value_heads=4, max_position_embeddings=8192)
    published.one_of("use_bidirectional_attention", (None, False), None)
    layers, bias = published.layers("num_hidden_layers"), published.flag("attention_bias", False)
    narrow = layer_windows(published, layers, [number % 2 == 0 for number in range(layers)])
    limit = published.number_or_none("attn_logit_softcapping", 50.0)
    config = decoder(
        published,
        "gemma2",
        patterns=[window(published.whole("sliding_window", 4096)) if one else Causal() for one in narrow],
        activation=published.one_of("hidden_activation", ACTIVATIONS, "gelu_pytorch_tanh"),
        tied=True,
        scores=() if limit is None else (SoftCap(limit),),
        scale=published.whole("query_pre_attn_scalar", 256) ** -0.5,
        bias=bias,
        output_bias=bias,
    )
    norm = recipe(RMSNorm, **dict(config.norm.settings), offset=1.0)
    return replace(
        config,
        embedding=recipe(TokenEmbedding, scale=config.width**0.5),
        norm=norm,
        final_norm=norm,
        residual=recipe(Sandwich),
        head=_capped(config.head, published.number_or_none("final_logit_softcapping", 30.0)),
    )


def _capped(head: Recipe | None, cap: float | None) -> Recipe | None:
    return None if head is None else recipe(head.make, cap=cap)


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Gemma 2."""
    attention = config.attentions[0]
    own, kinds = shared_fields(config), layer_kinds(config)
    if kinds["sliding_window"] is None:  # no layer has one, and transformers needs a number all the same
        del kinds["sliding_window"]
    return {
        "architectures": [f"Gemma2{class_suffix(config.head)}"],
        "hidden_activation": own.pop("hidden_act"),
        "attention_bias": attention["bias"],
        "query_pre_attn_scalar": round(attention["scale"] ** -2),
        "attn_logit_softcapping": attention["scores"][0].limit if attention["scores"] else None,
        "final_logit_softcapping": None if config.head is None else config.head["cap"],
        **own,
        **kinds,
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    layer, attention, feed_forward = "model.layers.{n}", "layers.{n}.attention", "layers.{n}.feed_forward"
    return KeyRules(
        *attention_rules(),
        KeyRule(f"{layer}.post_attention_layernorm.weight", f"{attention}.after.weight"),
        KeyRule(f"{layer}.pre_feedforward_layernorm.weight", f"{feed_forward}.norm.weight"),
        KeyRule(f"{layer}.post_feedforward_layernorm.weight", f"{feed_forward}.after.weight"),
        *feed_forward_rules(),
        head_rule(config, "lm_head.weight"),
        prefix="model.",
        bare=config.head is None,
    )


GEMMA2 = Family(
    "gemma2",
    DecoderOnly,
    configure,
    publish,
    rules,
    default_tokens={"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
)
