"""BERT (Devlin et al. 2018, arXiv:1810.04805) and the encoders built on it, MiniLM among them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...checkpoints.rules import KeyRules, Rule, Unused
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
from .published import Published, labels, task


def configure(published: Published) -> Config:
    """Our configuration of a published BERT."""
    published.one_of("position_embedding_type", ("absolute",), "absolute")
    published.one_of("is_decoder", (False,), False)
    published.one_of("add_cross_attention", (False,), False)
    width, heads = published.whole("hidden_size"), published.whole("num_attention_heads")
    if width % heads:
        raise published.refused("num_attention_heads", f"a divisor of hidden_size = {width}")
    activation = published.one_of("hidden_act", ACTIVATIONS, "gelu")
    epsilon = published.number("layer_norm_eps", 1e-12)
    limit = published.whole("max_position_embeddings", 512)
    segments = published.whole("type_vocab_size", 2)
    head = None
    match published.task():
        case "MaskedLM" | "PreTraining":
            published.one_of("tie_word_embeddings", (True,), True)
            head = recipe(MaskedHead, activation=activation, epsilon=epsilon)
        case "SequenceClassification":
            head = recipe(ClassHead, labels=published.labels(), activation="tanh")
    return Config(
        family="bert",
        vocabulary=published.whole("vocab_size"),
        width=width,
        layers=published.whole("num_hidden_layers"),
        limit=limit,
        query_heads=heads,
        key_heads=heads,
        head_width=width // heads,
        embedding=recipe(
            SummedEmbedding,
            positions=recipe(LearnedPositions, count=limit),
            segments=segments,
            norm=recipe(nn.LayerNorm, eps=epsilon),
        ),
        attention=recipe(MultiHead),
        feed_forward=recipe(FeedForward, inner=published.whole("intermediate_size"), activation=activation),
        norm=recipe(nn.LayerNorm, eps=epsilon),
        residual=PostNorm,
        head=head,
    )


def publish(config: Config) -> dict[str, Any]:
    """What a published BERT says of our configuration."""
    return {
        "architectures": [f"Bert{task(config.head)}"],
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "intermediate_size": config.feed_forward["inner"],
        "hidden_act": config.feed_forward["activation"],
        "max_position_embeddings": config.limit,
        "type_vocab_size": config.embedding["segments"],
        "layer_norm_eps": config.norm["eps"],
        **labels(config.head),
    }


def rules(config: Config) -> KeyRules:
    """Published keys and ours."""
    layer = "bert.encoder.layer.{n}"
    return KeyRules(
        Rule("bert.embeddings.word_embeddings.weight", "embedding.tokens.weight"),
        Rule("bert.embeddings.position_embeddings.weight", "embedding.positions.weight"),
        Rule("bert.embeddings.token_type_embeddings.weight", "embedding.segments.weight"),
        *_norm("bert.embeddings.LayerNorm", "embedding.norm"),
        Rule(f"{layer}.attention.self.query.{{p}}", "layers.{n}.attention.inner.query.{p}"),
        Rule(f"{layer}.attention.self.key.{{p}}", "layers.{n}.attention.inner.key.{p}"),
        Rule(f"{layer}.attention.self.value.{{p}}", "layers.{n}.attention.inner.value.{p}"),
        Rule(f"{layer}.attention.output.dense.{{p}}", "layers.{n}.attention.inner.output.{p}"),
        *_norm(f"{layer}.attention.output.LayerNorm", "layers.{n}.attention.norm"),
        Rule(f"{layer}.intermediate.dense.{{p}}", "layers.{n}.feed_forward.inner.up.{p}"),
        Rule(f"{layer}.output.dense.{{p}}", "layers.{n}.feed_forward.inner.down.{p}"),
        *_norm(f"{layer}.output.LayerNorm", "layers.{n}.feed_forward.norm"),
        *_head_rules(config.head),
        Unused("cls.predictions.{any}", "guesses hidden words"),
        Unused("bert.pooler.dense.{p}", "a summary of the first token, trained for another task"),
        Unused("cls.seq_relationship.{p}", "guesses whether two sentences follow each other"),
        Unused("classifier.{any}", "the head of one task"),
        Unused("bert.embeddings.position_ids", "the numbers 0, 1, 2, ..."),
        prefix="bert.",
        bare=config.head is None,
    )


def _head_rules(head: Recipe | None) -> tuple[Rule, ...]:
    if head is None:
        return ()
    if head.make is ClassHead:
        return Rule("bert.pooler.dense.{p}", "head.inner.{p}"), Rule("classifier.{p}", "head.output.{p}")
    return (
        Rule("cls.predictions.transform.dense.{p}", "head.linear.{p}"),
        *_norm("cls.predictions.transform.LayerNorm", "head.norm"),
        Rule("cls.predictions.bias", "head.offset"),
    )


def _norm(published: str, ours: str) -> tuple[Rule, ...]:
    """A layer norm, also under the names that the first checkpoints gave its parts."""
    return (
        Rule(f"{published}.{{p}}", f"{ours}.{{p}}"),
        Rule(f"{published}.gamma", f"{ours}.weight"),
        Rule(f"{published}.beta", f"{ours}.bias"),
    )


BERT = Family("bert", EncoderOnly, configure, publish, rules)
