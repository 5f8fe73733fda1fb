"""The decoder that Llama, Mistral, Qwen 3, Gemma 2 and others share: configuration, published fields, key rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...formats.rules import KeyRule, KeyRules, Unused
from ...forms.patterns import And, Causal, Pattern, Window
from ...nn import ACTIVATIONS, GatedFeedForward, MultiHead, PreNorm, RMSNorm, TokenEmbedding
from ..config import Config, recipe
from .heads import causal_head, head_rule, is_tied
from .published import Published
from .rope import limit_of, published_limit, rope_fields, rotary_of


def decoder(
    published: Published,
    family: str,
    *,
    patterns: Sequence[Pattern] = (),
    activation: str | None = None,
    feed_forward_bias: bool = False,
    tied: bool = False,
    partial_rotary: bool = False,
    **attention: Any,
) -> Config:
    """The configuration of a decoder built like Llama.

    Args:
        published: the published configuration.
        family: name of the family.
        patterns: the pattern of each layer, or one for all; ``Causal()`` by default.
        activation: that of the feed-forward step, where the file has no ``hidden_act``.
        feed_forward_bias: whether the feed-forward projections have a bias.
        tied: whether the head is the embedding, unless the file says otherwise.
        partial_rotary: whether the file may rotate the first features of each head alone.
        attention: further settings of `limelight.nn.MultiHead`.
    """
    heads, layers = published.whole("num_attention_heads"), published.layers("num_hidden_layers")
    given = published.or_none("head_dim")
    head_width = published.head_width("hidden_size", "num_attention_heads") if given is None else given
    rotary = rotary_of(published, head_width, partial=partial_rotary)
    dropout = published.probability("attention_dropout", 0.0)
    norm = recipe(RMSNorm, epsilon=published.number("rms_norm_eps", 1e-6))
    seen = tuple(
        recipe(MultiHead, pattern=pattern, rotary=rotary, dropout=dropout, **attention)
        for pattern in patterns or [Causal()]
    )
    return Config(
        family=family,
        vocabulary=published.whole("vocab_size"),
        width=published.whole("hidden_size"),
        layers=layers,
        limit=limit_of(published.whole("max_position_embeddings", 2048), rotary.scaling),
        query_heads=heads,
        key_value_heads=published.whole("num_key_value_heads", heads),
        head_width=head_width,
        embedding=recipe(TokenEmbedding),
        attention=seen if len(set(seen)) > 1 else seen[0],
        feed_forward=recipe(
            GatedFeedForward,
            inner=published.whole("intermediate_size"),
            activation=activation or published.one_of("hidden_act", ACTIVATIONS, "silu"),
            bias=feed_forward_bias,
        ),
        norm=norm,
        final_norm=norm,
        residual=recipe(PreNorm),
        head=causal_head(published, tied=tied),
    )


def shared_fields(config: Config) -> dict[str, Any]:
    """The fields that configurations of Llama, Mistral, Qwen 3, ... share."""
    attention = config.attentions[0]
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "max_position_embeddings": published_limit(config.limit, attention["rotary"].scaling),
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_width,
        "attention_dropout": attention["dropout"],
        "rope_parameters": rope_fields(attention["rotary"], config.head_width),
        "intermediate_size": config.feed_forward["inner"],
        "hidden_act": config.feed_forward["activation"],
        "rms_norm_eps": config.norm["epsilon"],
        "tie_word_embeddings": is_tied(config.head),
    }


def window(length: int) -> Pattern:
    """A sliding window: each token sees the last ``length`` tokens, itself included."""
    return Causal() & Window(back=length - 1, ahead=0)


def window_length(pattern: Pattern) -> int | None:
    """The ``length`` of a pattern that `window` makes; ``None`` where every earlier token is seen."""
    match pattern:
        case And(right=Window(back=int(back))):
            return back + 1
    return None


KINDS = ("full_attention", "sliding_attention")


def layer_windows(published: Published, layers: int, usual: list[bool]) -> list[bool]:
    """Which layers see a window: as ``layer_types`` says, or as is ``usual``."""
    kinds = published.get("layer_types")
    if kinds is None:
        return usual
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in KINDS for kind in kinds):
        raise published.refused("layer_types", f"one of {KINDS} for each of {layers} layers")
    return [kind == KINDS[1] for kind in kinds]


def layer_kinds(config: Config) -> dict[str, Any]:
    """The published fields of the windows of all layers, the inverse of `layer_windows`."""
    lengths = [window_length(attention["pattern"]) for attention in config.attentions]
    found = [length for length in lengths if length is not None]
    window = {"use_sliding_window": bool(found), "sliding_window": found[0] if found else None}
    return {"layer_types": [KINDS[length is not None] for length in lengths], **window}


def decoder_rules(config: Config) -> KeyRules:
    """The key rules of a decoder built like Llama."""
    layer = "model.layers.{n}"
    return KeyRules(
        *attention_rules(),
        KeyRule(f"{layer}.post_attention_layernorm.weight", "layers.{n}.feed_forward.norm.weight"),
        *feed_forward_rules(),
        head_rule(config, "lm_head.weight"),
        prefix="model.",
        bare=config.head is None,
    )


def attention_rules() -> tuple[KeyRule | Unused, ...]:
    """The keys of everything but the feed-forward step and the head."""
    layer, attention = "model.layers.{n}", "layers.{n}.attention.inner"
    return (
        KeyRule("model.embed_tokens.weight", "embedding.tokens.weight"),
        KeyRule(f"{layer}.input_layernorm.weight", "layers.{n}.attention.norm.weight"),
        KeyRule(f"{layer}.self_attn.q_proj.{{p}}", f"{attention}.query.{{p}}"),
        KeyRule(f"{layer}.self_attn.k_proj.{{p}}", f"{attention}.key.{{p}}"),
        KeyRule(f"{layer}.self_attn.v_proj.{{p}}", f"{attention}.value.{{p}}"),
        KeyRule(f"{layer}.self_attn.o_proj.{{p}}", f"{attention}.output.{{p}}"),
        KeyRule("model.norm.weight", "norm.weight"),
        Unused(f"{layer}.self_attn.rotary_emb.inv_freq", "frequencies follow from the configuration"),
    )


def feed_forward_rules() -> tuple[KeyRule, ...]:
    """The keys of the gated feed-forward step."""
    return tuple(
        KeyRule(f"model.layers.{{n}}.mlp.{name}_proj.{{p}}", f"layers.{{n}}.feed_forward.inner.{name}.{{p}}")
        for name in ("gate", "up", "down")
    )
