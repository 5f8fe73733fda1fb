"""Marian's translators (Junczys-Dowmunt et al. 2018, arXiv:1804.00344): Transformer with sinusoids."""

from __future__ import annotations

from typing import Any

from ...formats.rules import KeyRules, Unused
from ...nn import SSRU, PostNorm, Sinusoids, SplitHalves, Xavier
from ...tensors.shapes import wrong
from ..config import Config, recipe
from ..encoder_decoder import EncoderDecoder
from .bart import dropout, half, half_rules, head, head_bias, shared_fields, text_embedding, tied
from .family import Family
from .heads import table_rules, tables_tied
from .published import Published


def configure(published: Published) -> Config:
    """Our configuration of a published Marian model."""
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
        one_table=published.flag("share_encoder_decoder_embeddings", True) and tied(published),
        head=head(published),
        **common,
    )


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Marian model."""
    assert config.encoder is not None  # as `EncoderDecoder` checks
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
        "tie_word_embeddings": tables_tied(config),
        **shared_fields(config),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    encoder, decoder = (f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder"))
    return KeyRules(
        *table_rules(
            config,
            encoder=encoder,
            decoder=decoder,
            shared="model.shared.weight",
            head="lm_head.weight",
            writes_shared=config.one_table,
        ),
        *half_rules("encoder", "encoder."),
        *half_rules("decoder", ""),
        Unused("model.encoder.embed_positions.weight", "waves that follow from the width"),
        Unused("model.decoder.embed_positions.weight", "waves that follow from the width"),
        head_bias(config),
        prefix="model.",
        bare=config.head is None,
    )


MARIAN = Family(
    "marian",
    EncoderDecoder,
    configure,
    publish,
    rules,
    initialisation=lambda config: Xavier(),
    default_tokens={
        **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), 0),
        **dict.fromkeys(("decoder_start_token_id", "pad_token_id"), 58100),
    },
)
