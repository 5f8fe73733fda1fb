"""Output heads of families: tied to the token embedding, or with a matrix of their own.

A configuration that says a head is tied is not the last word. As in transformers, the checkpoint decides: where it
holds a head with other values than the embedding, that head is used; where it holds the head alone, it is the embedding
too.
"""

from __future__ import annotations

from dataclasses import replace

from ...formats.rules import KeyRule, Unused
from ...nn import MaskedHead, TiedHead, UntiedHead
from ..config import Config, Recipe, recipe
from .published import Published


def causal_head(published: Published, *, tied: bool) -> Recipe | None:
    """The head of a decoder, ``tied`` unless its file says otherwise; ``None`` of a published body."""
    tied = published.flag("tie_word_embeddings", tied)
    return recipe(TiedHead if tied else UntiedHead) if published.task("CausalLM") == "CausalLM" else None


def is_tied(head: Recipe | None) -> bool:
    """Whether the matrix of a head is the token embedding."""
    return head is not None and (
        head.make is TiedHead or (head.make is MaskedHead and not head.setting("untied", False))
    )


def untied(config: Config) -> Config:
    """The same model, whose head has a matrix of its own."""
    head = config.head
    if head is None or not is_tied(head):
        return config
    settings = dict(head.settings)
    own = recipe(UntiedHead, **settings) if head.make is TiedHead else recipe(MaskedHead, **settings, untied=True)
    return replace(config, head=own)


def head_rule(config: Config, published: str) -> KeyRule | Unused:
    """The key of the matrix of a head that scores every token."""
    if config.head is None:
        return Unused(published, "scores the next token")
    if is_tied(config.head):
        return KeyRule(published, "embedding.tokens.weight", again=True)
    return KeyRule(published, "head.linear.weight" if config.head.make is UntiedHead else "head.output.weight")


def bias_name(config: Config) -> str:
    """What we call the bias of a head that scores every token."""
    return "head.linear.bias" if config.head is not None and config.head.make is UntiedHead else "head.bias"
