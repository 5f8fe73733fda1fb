"""BERT (Devlin et al. 2018, arXiv:1810.04805) and the encoders built on it, MiniLM among them."""

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
from ..config import Config, Recipe, recipe
from ..encoder_only import EncoderOnly
from .family import Family
from .heads import head_rule, is_tied
from .published import Published, class_suffix, labels


def configure(published: Published) -> Config:
    """Our configuration of a published BERT."""
    return encoder(published, "bert", activation=published.one_of("hidden_act", ACTIVATIONS, "gelu"))


def encoder(
    published: Published,
    family: str,
    *,
    activation: str,
    offset: int = 0,
    inner: int | None = None,
    shared: bool = False,
) -> Config:
    """The configuration of an encoder of the BERT family (BERT, RoBERTa, ALBERT).

    Args:
        published: the published configuration.
        family: name of the family.
        activation: that of the masked-language-model head.
        offset: rows of the table of positions before that of position 0.
        inner: width of the embedding, ``None`` for that of the model.
        shared: whether all layers have one set of parameters.
    """
    published.one_of("position_embedding_type", ("absolute",), "absolute")
    published.one_of("is_decoder", (False,), False)
    published.one_of("add_cross_attention", (False,), False)
    heads = published.whole("num_attention_heads")
    norm = recipe(nn.LayerNorm, eps=published.number("layer_norm_eps", 1e-12))
    limit = published.whole("max_position_embeddings", 512) - offset
    dropout = published.probability("hidden_dropout_prob", 0.1)
    return Config(
        family=family,
        vocabulary=published.whole("vocab_size"),
        width=published.whole("hidden_size"),
        layers=published.layers("num_hidden_layers", shared=shared),
        limit=limit,
        query_heads=heads,
        key_value_heads=heads,
        head_width=published.head_width("hidden_size", "num_attention_heads"),
        embedding=recipe(
            SummedEmbedding,
            positions=recipe(LearnedPositions, count=limit, offset=offset),
            segments=published.whole("type_vocab_size", 2),
            norm=norm,
            inner=inner,
            dropout=dropout,
        ),
        attention=recipe(MultiHead, dropout=published.probability("attention_probs_dropout_prob", 0.1)),
        feed_forward=recipe(
            FeedForward,
            inner=published.whole("intermediate_size"),
            activation=published.one_of("hidden_act", ACTIVATIONS, "gelu"),
        ),
        norm=norm,
        residual=recipe(PostNorm, dropout=dropout),
        shared=shared,
        head=head(published, activation, norm["eps"], class_activation="tanh"),
    )


def head(published: Published, activation: str, epsilon: float, *, class_activation: str) -> Recipe | None:
    """The head of an encoder, after the class that its file names; the body alone for tasks that are not built here."""
    match published.task():
        case "MaskedLM" | "PreTraining":
            own = {} if published.flag("tie_word_embeddings", True) else {"untied": True}
            return recipe(MaskedHead, activation=activation, epsilon=epsilon, **own)
        case "SequenceClassification":
            return recipe(ClassHead, labels=published.labels(), activation=class_activation)
    return None


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a BERT."""
    return {"architectures": [f"Bert{class_suffix(config.head)}"], **shared_fields(config)}


def shared_fields(config: Config) -> dict[str, Any]:
    """The fields that configurations of the BERT family share."""
    attention, positions = config.attentions[0], config.embedding["positions"]
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "intermediate_size": config.feed_forward["inner"],
        "hidden_act": config.feed_forward["activation"],
        "hidden_dropout_prob": config.residual["dropout"],
        "attention_probs_dropout_prob": attention["dropout"],
        "max_position_embeddings": positions["count"] + positions["offset"],
        "type_vocab_size": config.embedding["segments"],
        "layer_norm_eps": config.norm["eps"],
        "tie_word_embeddings": is_tied(config.head) or config.head is None or config.head.make is not MaskedHead,
        **labels(config.head),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    return KeyRules(
        *body_rules("bert"),
        *_head_rules(config),
        Unused("cls.predictions.{any}", "the masked-language-model head"),
        Unused("bert.pooler.dense.{p}", "a summary of the first token, trained for another task"),
        Unused("cls.seq_relationship.{p}", "the next-sentence head"),
        Unused("classifier.{any}", "the head of one task"),
        prefix="bert.",
        bare=config.head is None,
    )


def body_rules(prefix: str) -> tuple[KeyRule | Unused, ...]:
    """Key rules of the body of BERT and RoBERTa."""
    layer, embeddings = f"{prefix}.encoder.layer.{{n}}", f"{prefix}.embeddings"
    attention = "layers.{n}.attention.inner"
    return (
        KeyRule(f"{embeddings}.word_embeddings.weight", "embedding.tokens.weight"),
        KeyRule(f"{embeddings}.position_embeddings.weight", "embedding.positions.weight"),
        KeyRule(f"{embeddings}.token_type_embeddings.weight", "embedding.segments.weight"),
        *norm_rules(f"{embeddings}.LayerNorm", "embedding.norm"),
        KeyRule(f"{layer}.attention.self.query.{{p}}", f"{attention}.query.{{p}}"),
        KeyRule(f"{layer}.attention.self.key.{{p}}", f"{attention}.key.{{p}}"),
        KeyRule(f"{layer}.attention.self.value.{{p}}", f"{attention}.value.{{p}}"),
        KeyRule(f"{layer}.attention.output.dense.{{p}}", f"{attention}.output.{{p}}"),
        *norm_rules(f"{layer}.attention.output.LayerNorm", "layers.{n}.attention.norm"),
        KeyRule(f"{layer}.intermediate.dense.{{p}}", "layers.{n}.feed_forward.inner.up.{p}"),
        KeyRule(f"{layer}.output.dense.{{p}}", "layers.{n}.feed_forward.inner.down.{p}"),
        *norm_rules(f"{layer}.output.LayerNorm", "layers.{n}.feed_forward.norm"),
        Unused(f"{embeddings}.position_ids", "the numbers 0, 1, 2, ..."),
    )


def _head_rules(config: Config) -> tuple[KeyRule | Unused, ...]:
    if config.head is None:
        return ()
    if config.head.make is ClassHead:
        return KeyRule("bert.pooler.dense.{p}", "head.inner.{p}"), KeyRule("classifier.{p}", "head.output.{p}")
    return (
        KeyRule("cls.predictions.transform.dense.{p}", "head.linear.{p}"),
        *norm_rules("cls.predictions.transform.LayerNorm", "head.norm"),
        *masked_head_rules(config, "cls.predictions.decoder", "cls.predictions.bias"),
    )


def masked_head_rules(config: Config, table: str, bias: str) -> tuple[KeyRule | Unused, ...]:
    """The matrix of a masked-language-model head, and its bias.

    Files hold the bias beside the matrix, or as that of the matrix, or both, of which the latter is used.
    """
    biases = [KeyRule(bias, "head.bias", spare=True), KeyRule(f"{table}.bias", "head.bias")]
    return (head_rule(config, f"{table}.weight"), *(biases if is_tied(config.head) else reversed(biases)))


def norm_rules(published: str, ours: str) -> tuple[KeyRule, ...]:
    """A layer norm, also under the names that the first checkpoints gave its parts."""
    return (
        KeyRule(f"{published}.{{p}}", f"{ours}.{{p}}"),
        KeyRule(f"{published}.gamma", f"{ours}.weight"),
        KeyRule(f"{published}.beta", f"{ours}.bias"),
    )


BERT = Family("bert", EncoderOnly, configure, publish, rules, default_tokens={"pad_token_id": 0})
