"""ALBERT (Lan et al. 2019, arXiv:1909.11942): all layers share their parameters, and the embedding is narrower."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.rules import KeyRule, KeyRules, Unused
from ...nn import ACTIVATIONS, ClassHead, MaskedHead
from ..config import Config, recipe
from ..encoder_only import EncoderOnly
from .bert import encoder, masked_head_rules, norm_rules, shared_fields
from .family import Family
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published ALBERT."""
    for name in ("num_hidden_groups", "inner_group_num"):  # all published ones have a single layer
        published.one_of(name, (1,), 1)
    inner = published.whole("embedding_size", 128)
    published = published.with_defaults(
        hidden_act="gelu_new", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    activation = published.one_of("hidden_act", ACTIVATIONS, "gelu_new")
    config = encoder(published, "albert", activation=activation, inner=inner, shared=True)
    head = config.head
    if head is not None and head.make is MaskedHead:
        head = recipe(MaskedHead, **dict(head.settings), inner=inner)
    return replace(config, head=head)


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of an ALBERT."""
    return {
        "architectures": [f"Albert{class_suffix(config.head)}"],
        "embedding_size": config.embedding["inner"],
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        **shared_fields(config),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    embeddings, layer = "albert.embeddings", "albert.encoder.albert_layer_groups.0.albert_layers.0"
    attention, feed_forward = "layers.0.attention", "layers.0.feed_forward"
    return KeyRules(
        KeyRule(f"{embeddings}.word_embeddings.weight", "embedding.tokens.weight"),
        KeyRule(f"{embeddings}.position_embeddings.weight", "embedding.positions.weight"),
        KeyRule(f"{embeddings}.token_type_embeddings.weight", "embedding.segments.weight"),
        *norm_rules(f"{embeddings}.LayerNorm", "embedding.norm"),
        KeyRule("albert.encoder.embedding_hidden_mapping_in.{p}", "embedding.widen.{p}"),
        KeyRule(f"{layer}.attention.query.{{p}}", f"{attention}.inner.query.{{p}}"),
        KeyRule(f"{layer}.attention.key.{{p}}", f"{attention}.inner.key.{{p}}"),
        KeyRule(f"{layer}.attention.value.{{p}}", f"{attention}.inner.value.{{p}}"),
        KeyRule(f"{layer}.attention.dense.{{p}}", f"{attention}.inner.output.{{p}}"),
        *norm_rules(f"{layer}.attention.LayerNorm", f"{attention}.norm"),
        KeyRule(f"{layer}.ffn.{{p}}", f"{feed_forward}.inner.up.{{p}}"),
        KeyRule(f"{layer}.ffn_output.{{p}}", f"{feed_forward}.inner.down.{{p}}"),
        *norm_rules(f"{layer}.full_layer_layer_norm", f"{feed_forward}.norm"),
        *_head_rules(config),
        Unused("predictions.{any}", "the masked-language-model head"),
        Unused("albert.pooler.{p}", "a summary of the first token, trained for another task"),
        Unused("sop_classifier.{any}", "the sentence-order head"),
        Unused("classifier.{p}", "the head of one task"),
        Unused(f"{embeddings}.position_ids", "the numbers 0, 1, 2, ..."),
        prefix="albert.",
        bare=config.head is None,
    )


def _head_rules(config: Config) -> tuple[KeyRule | Unused, ...]:
    if config.head is None:
        return ()
    if config.head.make is ClassHead:
        return KeyRule("albert.pooler.{p}", "head.inner.{p}"), KeyRule("classifier.{p}", "head.output.{p}")
    return (
        KeyRule("predictions.dense.{p}", "head.linear.{p}"),
        *norm_rules("predictions.LayerNorm", "head.norm"),
        *masked_head_rules(config, "predictions.decoder", "predictions.bias"),
    )


ALBERT = Family(
    "albert",
    EncoderOnly,
    configure,
    publish,
    rules,
    default_tokens={"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
)
