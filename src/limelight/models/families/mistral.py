"""Mistral (Jiang et al. 2023, arXiv:2310.06825): Llama whose tokens see a sliding window."""

from __future__ import annotations

from typing import Any

from ...forms.patterns import Causal
from ..config import Config
from ..decoder_only import DecoderOnly
from .decoder import decoder, decoder_rules, shared_fields, window, window_length
from .family import Family
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published Mistral."""
    length = published.or_none("sliding_window", 4096)
    patterns = [Causal() if length is None else window(length)]
    published = published.with_defaults(num_key_value_heads=8, max_position_embeddings=131_072)
    return decoder(published, "mistral", patterns=patterns, bias=False, output_bias=False)


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Mistral."""
    return {
        "architectures": [f"Mistral{class_suffix(config.head)}"],
        "sliding_window": window_length(config.attentions[0]["pattern"]),
        **shared_fields(config),
    }


MISTRAL = Family(
    "mistral",
    DecoderOnly,
    configure,
    publish,
    decoder_rules,
    default_tokens={"bos_token_id": 1, "eos_token_id": 2},
)
