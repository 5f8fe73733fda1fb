"""Whisper (Radford et al. 2022, arXiv:2212.04356): an encoder that hears and a decoder that writes it down."""

from __future__ import annotations

from typing import Any

from ...checkpoints.rules import KeyRules, Rule, Unused
from ...nn import LearnedPositions, PreNorm, SpectrumEmbedding, TiedHead
from ..config import Config, recipe
from ..encoder_decoder import EncoderDecoder
from .bart import NORM, dropout, half, half_rules, said, text_embedding
from .family import Family
from .published import Published


def configure(published: Published) -> Config:
    """Our configuration of a published Whisper."""
    published.one_of("tie_word_embeddings", (True,), True)
    published.one_of("use_weighted_layer_sum", (False,), False)  # of a head that is not built here
    heard, written = published.whole("max_source_positions", 1500), published.whole("max_target_positions", 448)
    drop, residual = dropout(published, 0.0), recipe(PreNorm, dropout=dropout(published, 0.0))
    common: dict[str, Any] = {"family": "whisper", "vocabulary": published.whole("vocab_size"), "key_bias": False}
    common |= {"final_norm": NORM}
    spectrum = recipe(
        SpectrumEmbedding,
        bands=published.whole("num_mel_bins", 80),
        positions=recipe(LearnedPositions, count=heard),
        dropout=drop,
    )
    text = text_embedding(published, recipe(LearnedPositions, count=written), None, 0.0)
    encoder = half(published, "encoder", residual, limit=heard, embedding=spectrum, **common)
    writes = published.task("ConditionalGeneration") == "ConditionalGeneration"
    return half(
        published,
        "decoder",
        residual,
        limit=written,
        embedding=text,
        encoder=encoder,
        head=recipe(TiedHead) if writes else None,
        **common,
    )


def publish(config: Config) -> dict[str, Any]:
    """What a published Whisper says of our configuration."""
    assert config.encoder is not None  # `EncoderDecoder` sees to it
    return {
        "architectures": ["WhisperModel" if config.head is None else "WhisperForConditionalGeneration"],
        "vocab_size": config.vocabulary,
        "num_mel_bins": config.encoder.embedding["bands"],
        "max_source_positions": config.encoder.limit,
        "max_target_positions": config.limit,
        "tie_word_embeddings": True,
        **said(config),
    }


def rules(config: Config) -> KeyRules:
    """Published keys and ours."""
    return KeyRules(
        Rule("model.decoder.embed_tokens.weight", "embedding.tokens.weight"),
        Rule("model.encoder.conv1.{p}", "encoder.embedding.first.{p}"),
        Rule("model.encoder.conv2.{p}", "encoder.embedding.second.{p}"),
        *half_rules("encoder", "encoder."),
        *half_rules("decoder", ""),
        *(
            rule
            for side, ours in (("encoder", "encoder."), ("decoder", ""))
            for rule in (
                Rule(f"model.{side}.embed_positions.weight", f"{ours}embedding.positions.weight"),
                Rule(f"model.{side}.layer_norm.{{p}}", f"{ours}norm.{{p}}"),
            )
        ),
        Unused("proj_out.weight", "the embedding once more"),
        prefix="model.",
        bare=config.head is None,
    )


WHISPER = Family("whisper", EncoderDecoder, configure, publish, rules)
