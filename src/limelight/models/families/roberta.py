"""RoBERTa (Liu et al. 2019, arXiv:1907.11692): BERT with positions that begin behind that of padding."""

from __future__ import annotations

from typing import Any

from ...formats.rules import KeyRule, KeyRules, Unused
from ...nn import ClassHead
from ..config import Config
from ..encoder_only import EncoderOnly
from .bert import body_rules, encoder, masked_head_rules, norm_rules, shared_fields
from .family import Family
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published RoBERTa, whose head has GELU whatever the layers have."""
    return encoder(published, "roberta", activation="gelu", offset=published.token("pad_token_id", 1) + 1)


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a RoBERTa."""
    padding = config.embedding["positions"]["offset"] - 1
    return {"architectures": [f"Roberta{class_suffix(config.head)}"], "pad_token_id": padding, **shared_fields(config)}


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    return KeyRules(
        *body_rules("roberta"),
        *_head_rules(config),
        Unused("lm_head.{any}", "the masked-language-model head"),
        Unused("roberta.pooler.dense.{p}", "a summary of the first token, trained for another task"),
        Unused("classifier.{any}", "the head of one task"),
        prefix="roberta.",
        bare=config.head is None,
    )


def _head_rules(config: Config) -> tuple[KeyRule | Unused, ...]:
    if config.head is None:
        return ()
    if config.head.make is ClassHead:
        return KeyRule("classifier.dense.{p}", "head.inner.{p}"), KeyRule("classifier.out_proj.{p}", "head.output.{p}")
    return (
        KeyRule("lm_head.dense.{p}", "head.linear.{p}"),
        *norm_rules("lm_head.layer_norm", "head.norm"),
        *masked_head_rules(config, "lm_head.decoder", "lm_head.bias"),
    )


ROBERTA = Family(
    "roberta",
    EncoderOnly,
    configure,
    publish,
    rules,
    default_tokens={"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2},
)
