"""DistilBERT (Sanh et al. 2019, arXiv:1910.01108): half the layers of BERT, no segments."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...formats.rules import KeyRule, KeyRules, Unused
from ...nn import (
    ACTIVATIONS,
    ClassHead,
    FeedForward,
    LearnedPositions,
    MaskedHead,
    MultiHead,
    PostNorm,
    SummedEmbedding,
)
from ..config import Config, recipe
from ..encoder_only import EncoderOnly
from .bert import head, norm_rules
from .family import Family
from .heads import head_rule, is_tied
from .published import Published, class_suffix, labels

EPSILON = 1e-12  # of every norm; the published configuration does not state it


def configure(published: Published) -> Config:
    """Our configuration of a published DistilBERT."""
    heads, limit = published.whole("n_heads"), published.whole("max_position_embeddings", 512)
    activation = published.one_of("activation", ACTIVATIONS, "gelu")
    dropout = published.probability("dropout", 0.1)
    norm = recipe(nn.LayerNorm, eps=EPSILON)
    return Config(
        family="distilbert",
        vocabulary=published.whole("vocab_size"),
        width=published.whole("dim"),
        layers=published.layers("n_layers"),
        limit=limit,
        query_heads=heads,
        key_value_heads=heads,
        head_width=published.head_width("dim", "n_heads"),
        embedding=recipe(SummedEmbedding, positions=recipe(LearnedPositions, count=limit), norm=norm, dropout=dropout),
        attention=recipe(MultiHead, dropout=published.probability("attention_dropout", 0.1)),
        feed_forward=recipe(FeedForward, inner=published.whole("hidden_dim"), activation=activation),
        norm=norm,
        residual=recipe(PostNorm, dropout=dropout),
        head=head(published, activation, EPSILON, class_activation="relu"),
    )


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a DistilBERT."""
    return {
        "architectures": [f"DistilBert{class_suffix(config.head)}"],
        "vocab_size": config.vocabulary,
        "dim": config.width,
        "n_layers": config.layers,
        "n_heads": config.query_heads,
        "hidden_dim": config.feed_forward["inner"],
        "activation": config.feed_forward["activation"],
        "dropout": config.residual["dropout"],
        "attention_dropout": config.attentions[0]["dropout"],
        "max_position_embeddings": config.limit,
        "tie_word_embeddings": is_tied(config.head) or config.head is None or config.head.make is not MaskedHead,
        **labels(config.head),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    layer, attention = "distilbert.transformer.layer.{n}", "layers.{n}.attention.inner"
    return KeyRules(
        KeyRule("distilbert.embeddings.word_embeddings.weight", "embedding.tokens.weight"),
        KeyRule("distilbert.embeddings.position_embeddings.weight", "embedding.positions.weight"),
        *norm_rules("distilbert.embeddings.LayerNorm", "embedding.norm"),
        KeyRule(f"{layer}.attention.q_lin.{{p}}", f"{attention}.query.{{p}}"),
        KeyRule(f"{layer}.attention.k_lin.{{p}}", f"{attention}.key.{{p}}"),
        KeyRule(f"{layer}.attention.v_lin.{{p}}", f"{attention}.value.{{p}}"),
        KeyRule(f"{layer}.attention.out_lin.{{p}}", f"{attention}.output.{{p}}"),
        KeyRule(f"{layer}.sa_layer_norm.{{p}}", "layers.{n}.attention.norm.{p}"),
        KeyRule(f"{layer}.ffn.lin1.{{p}}", "layers.{n}.feed_forward.inner.up.{p}"),
        KeyRule(f"{layer}.ffn.lin2.{{p}}", "layers.{n}.feed_forward.inner.down.{p}"),
        KeyRule(f"{layer}.output_layer_norm.{{p}}", "layers.{n}.feed_forward.norm.{p}"),
        *_head_rules(config),
        Unused("vocab_{any}", "the masked-language-model head"),
        Unused("pre_classifier.{p}", "the head of one task"),
        Unused("classifier.{p}", "the head of one task"),
        Unused("distilbert.embeddings.position_ids", "the numbers 0, 1, 2, ..."),
        prefix="distilbert.",
        bare=config.head is None,
    )


def _head_rules(config: Config) -> tuple[KeyRule | Unused, ...]:
    if config.head is None:
        return ()
    if config.head.make is ClassHead:
        return KeyRule("pre_classifier.{p}", "head.inner.{p}"), KeyRule("classifier.{p}", "head.output.{p}")
    return (
        KeyRule("vocab_transform.{p}", "head.linear.{p}"),
        KeyRule("vocab_layer_norm.{p}", "head.norm.{p}"),
        head_rule(config, "vocab_projector.weight"),
        KeyRule("vocab_projector.bias", "head.bias"),
    )


DISTILBERT = Family("distilbert", EncoderOnly, configure, publish, rules, default_tokens={"pad_token_id": 0})
