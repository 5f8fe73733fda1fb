"""Marian's translators (Junczys-Dowmunt et al. 2018, arXiv:1804.00344): the first Transformer, waves as positions."""

from __future__ import annotations

from typing import Any

from ...formats.rules import KeyRule, KeyRules, Unused
from ...nn import SSRU, PostNorm, Sinusoids, SplitHalves
from ...tensors.shapes import wrong
from ..config import Config, recipe
from ..encoder_decoder import EncoderDecoder
from .bart import dropout, half, half_rules, head, head_bias, shared_fields, shared_table_rules, text_embedding
from .family import Family
from .heads import head_rule
from .published import Published


def configure(published: Published) -> Config:
    """Our configuration of a published Marian model."""
    published.one_of("tie_word_embeddings", (True,), True)
    embedding = text_embedding(published, recipe(Sinusoids, pairing=SplitHalves()), None)
    common: dict[str, Any] = {
        "family": "marian",
        "limit": published.whole("max_position_embeddings", 1024),
        "embedding": embedding,
    }
    vocabulary = published.whole("vocab_size")
    encoder = half(published, "encoder", recipe(PostNorm, dropout=dropout(published)), vocabulary=vocabulary, **common)
    return half(
        published,
        "decoder",
        encoder.residual,
        vocabulary=published.whole("decoder_vocab_size", vocabulary),
        encoder=encoder,
        one_table=published.flag("share_encoder_decoder_embeddings", True),
        head=head(published),
        **common,
    )


def publish(config: Config) -> dict[str, Any]:
    """What a published Marian model says of our configuration."""
    assert config.encoder is not None  # `EncoderDecoder` sees to it
    if config.attentions[0].make is SSRU:
        raise wrong(
            "model",
            "must be of a kind that transformers has, to be saved",
            "its decoder is recurrent (SSRU)",
            "Save the state_dict of its network, or keep Marian's own file.",
        )
    return {
        "architectures": ["MarianModel" if config.head is None else "MarianMTModel"],
        "vocab_size": config.encoder.vocabulary,
        "decoder_vocab_size": config.vocabulary,
        "max_position_embeddings": config.limit,
        "share_encoder_decoder_embeddings": config.one_table,
        "tie_word_embeddings": True,
        **shared_fields(config),
    }


def rules(config: Config) -> KeyRules:
    """Published keys and ours."""
    two_tables = (
        KeyRule("model.encoder.embed_tokens.weight", "encoder.embedding.tokens.weight"),
        KeyRule("model.decoder.embed_tokens.weight", "embedding.tokens.weight"),
        head_rule(config, "lm_head.weight"),
    )
    return KeyRules(
        *(shared_table_rules(config) if config.one_table else two_tables),
        *half_rules("encoder", "encoder."),
        *half_rules("decoder", ""),
        Unused("model.encoder.embed_positions.weight", "waves that follow from the width"),
        Unused("model.decoder.embed_positions.weight", "waves that follow from the width"),
        head_bias(config),
        prefix="model.",
        bare=config.head is None,
    )


MARIAN = Family("marian", EncoderDecoder, configure, publish, rules)
