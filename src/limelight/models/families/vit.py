"""ViT (Dosovitskiy et al. 2020, arXiv:2010.11929): an encoder over the patches of a picture."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...formats.rules import KeyRule, KeyRules, Unused
from ...nn import ACTIVATIONS, ClassHead, FeedForward, MultiHead, PatchEmbedding, PreNorm
from ..config import Config, recipe
from ..encoder_only import EncoderOnly
from .family import Family
from .published import Published, labels


def configure(published: Published) -> Config:
    """Our configuration of a published ViT."""
    heads = published.whole("num_attention_heads")
    size, patch = published.pair("image_size", 224), published.pair("patch_size", 16)
    if any(whole % part for whole, part in zip(size, patch, strict=True)):
        raise published.refused("patch_size", f"a divisor of image_size = {published.get('image_size')}")
    norm = recipe(nn.LayerNorm, eps=published.number("layer_norm_eps", 1e-12))
    dropout = published.probability("hidden_dropout_prob", 0.0)
    classes = published.task() == "ImageClassification"
    return Config(
        family="vit",
        vocabulary=1,  # it has no tokens
        width=published.whole("hidden_size"),
        layers=published.layers("num_hidden_layers"),
        limit=(size[0] // patch[0]) * (size[1] // patch[1]) + 1,
        query_heads=heads,
        key_value_heads=heads,
        head_width=published.head_width("hidden_size", "num_attention_heads"),
        embedding=recipe(
            PatchEmbedding, channels=published.whole("num_channels", 3), size=size, patch=patch, dropout=dropout
        ),
        attention=recipe(
            MultiHead,
            bias=published.flag("qkv_bias", True),
            dropout=published.probability("attention_probs_dropout_prob", 0.0),
        ),
        feed_forward=recipe(
            FeedForward,
            inner=published.whole("intermediate_size"),
            activation=published.one_of("hidden_act", ACTIVATIONS, "gelu"),
        ),
        norm=norm,
        final_norm=norm,
        residual=recipe(PreNorm, dropout=dropout),
        head=recipe(ClassHead, labels=published.labels(), activation=None) if classes else None,
    )


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a ViT."""
    size, patch = config.embedding["size"], config.embedding["patch"]
    return {
        "architectures": ["ViTModel" if config.head is None else "ViTForImageClassification"],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.query_heads,
        "intermediate_size": config.feed_forward["inner"],
        "hidden_act": config.feed_forward["activation"],
        "hidden_dropout_prob": config.residual["dropout"],
        "attention_probs_dropout_prob": config.attentions[0]["dropout"],
        "layer_norm_eps": config.norm["eps"],
        "image_size": size[0] if size[0] == size[1] else list(size),
        "patch_size": patch[0] if patch[0] == patch[1] else list(patch),
        "num_channels": config.embedding["channels"],
        "qkv_bias": config.attentions[0]["bias"],
        **labels(config.head),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    layer, attention, feed_forward = "vit.encoder.layer.{n}", "layers.{n}.attention", "layers.{n}.feed_forward"
    head = (
        KeyRule("classifier.{p}", "head.output.{p}")
        if config.head
        else Unused("classifier.{p}", "the head of one task")
    )
    return KeyRules(
        KeyRule("vit.embeddings.cls_token", "embedding.class_token"),
        KeyRule("vit.embeddings.position_embeddings", "embedding.positions"),
        KeyRule("vit.embeddings.patch_embeddings.projection.{p}", "embedding.patches.{p}"),
        KeyRule(f"{layer}.layernorm_before.{{p}}", f"{attention}.norm.{{p}}"),
        *(
            KeyRule(f"{layer}.attention.attention.{name}.{{p}}", f"{attention}.inner.{name}.{{p}}")
            for name in ("query", "key", "value")
        ),
        KeyRule(f"{layer}.attention.output.dense.{{p}}", f"{attention}.inner.output.{{p}}"),
        KeyRule(f"{layer}.layernorm_after.{{p}}", f"{feed_forward}.norm.{{p}}"),
        KeyRule(f"{layer}.intermediate.dense.{{p}}", f"{feed_forward}.inner.up.{{p}}"),
        KeyRule(f"{layer}.output.dense.{{p}}", f"{feed_forward}.inner.down.{{p}}"),
        KeyRule("vit.layernorm.{p}", "norm.{p}"),
        head,
        Unused("vit.pooler.dense.{p}", "a summary of the class token, trained for another task"),
        Unused("vit.embeddings.mask_token", "stands for patches that are hidden in training"),
        prefix="vit.",
        bare=config.head is None,
    )


VIT = Family("vit", EncoderOnly, configure, publish, rules)
