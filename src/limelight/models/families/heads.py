"""Output heads and token embeddings of families: tied to each other, or with a matrix of their own.

A configuration that says they are tied is not the last word. As in transformers, the checkpoint decides: where it
holds a head with other values than the embedding, that head is used; where it holds the head alone, it is the embedding
too. The encoder and the decoder of a model with both may have embeddings of their own in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from ...formats.rules import KeyRule, KeyRules, Renamed, Unused
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
    """The configuration with an untied head: a matrix of its own."""
    head = config.head
    if head is None or not is_tied(head):
        return config
    settings = dict(head.settings)
    own = recipe(UntiedHead, **settings) if head.make is TiedHead else recipe(MaskedHead, **settings, untied=True)
    return replace(config, head=own)


def as_stored(config: Config, rules: Callable[[Config], KeyRules], differing: Collection[tuple[str, str]]) -> Config:
    """The configuration with head and embeddings untied as far as a checkpoint has other values for them.

    Args:
        config: what the published configuration says.
        rules: the key rules of the family.
        differing: stored keys whose values are not those of the tensor that they are tied to, each with the key of that
            tensor. (Where that one is itself another name, the first of several, the file is not understood.)
    """
    tied, apart = rules(config), rules(untied(config))
    names = {key for key, first in differing if any(not part.rank for part in _renamed(tied, first))}
    heads = {key for key in names if tied.ours(key) != apart.ours(key)}
    tables = names - heads
    if not (config.one_table and tables):
        return untied(config) if heads else config
    separate = replace(config, one_table=False)
    parts = [part for key in tables for part in _renamed(rules(separate), key) if not part.rank]
    of_decoder = any(part.key == "embedding.tokens.weight" for part in parts)  # a tied head has the shared one
    return untied(separate) if heads or of_decoder else separate


def _renamed(rules: KeyRules, published: str) -> tuple[Renamed, ...]:
    found = rules.ours(published)
    return found if isinstance(found, tuple) else ()


def tables_tied(config: Config) -> bool:
    """``tie_word_embeddings`` of an encoder and decoder: false where embeddings and head share no weights."""
    return config.one_table or is_tied(config.head)


def table_rules(
    config: Config, *, encoder: str, decoder: str, shared: str, head: str, writes_shared: bool
) -> tuple[KeyRule | Unused, ...]:
    """The keys of the token embeddings of an encoder and a decoder, and of the head over them.

    Files of models whose embeddings are apart may hold a ``shared`` one too: it is read for those that are missing.
    With ``writes_shared`` the decoder's is written under that name, for files whose configuration ties the head to it.
    """
    ours, theirs = "embedding.tokens.weight", "encoder.embedding.tokens.weight"
    if config.one_table:
        return (
            KeyRule(shared, ours),
            KeyRule(decoder, ours, again=True),
            KeyRule(encoder, ours, again=True),
            head_rule(config, head),
        )
    of_head = head_rule(config, head)
    of_decoder = [KeyRule(decoder, ours), KeyRule(shared, ours, spare=True)]
    found = [*(reversed(of_decoder) if writes_shared else of_decoder), KeyRule(encoder, theirs), of_head]
    found.append(KeyRule(shared, theirs, spare=True))
    if isinstance(of_head, KeyRule) and not of_head.again:
        found.append(KeyRule(shared, of_head.ours, spare=True))
    return tuple(found)


def head_rule(config: Config, published: str) -> KeyRule | Unused:
    """The key of the matrix of a head that scores every token."""
    if config.head is None:
        return Unused(published, "scores the next token")
    if is_tied(config.head):
        return KeyRule(published, "embedding.tokens.weight", again=True)
    return KeyRule(published, "head.linear.weight" if config.head.make is UntiedHead else "head.output.weight")


def bias_name(config: Config) -> str:
    """Our parameter name for the bias of a head that scores every token."""
    return "head.linear.bias" if config.head is not None and config.head.make is UntiedHead else "head.bias"
