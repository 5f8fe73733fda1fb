"""GPT-2 (Radford et al. 2019): learned positions, pre-norm, matrices stored as (in, out)."""

from __future__ import annotations

from typing import Any

from torch import nn

from ...formats.rules import KeyRule, KeyRules, Transposed, Unused
from ...forms.patterns import Causal
from ...nn import ACTIVATIONS, FeedForward, LearnedPositions, MultiHead, Normal, PreNorm, SummedEmbedding
from ..config import Config, recipe
from ..decoder_only import DecoderOnly
from .family import Family
from .heads import causal_head, head_rule, is_tied
from .published import Published


def configure(published: Published) -> Config:
    """Our configuration of a published GPT-2."""
    published.one_of("add_cross_attention", (False,), False)
    width, heads, layers = published.whole("n_embd"), published.whole("n_head"), published.layers("n_layer")
    head_width, limit = published.head_width("n_embd", "n_head"), published.whole("n_positions", 1024)
    dropout = published.probability("resid_pdrop", 0.1)
    norm = recipe(nn.LayerNorm, eps=published.number("layer_norm_epsilon", 1e-5))
    scale = head_width**-0.5 if published.flag("scale_attn_weights", True) else 1.0
    by_layer = published.flag("scale_attn_by_inverse_layer_idx", False)
    attentions = tuple(
        recipe(
            MultiHead,
            pattern=Causal(),
            scale=scale / (number + 1 if by_layer else 1),
            dropout=published.probability("attn_pdrop", 0.1),
        )
        for number in range(layers)
    )
    return Config(
        family="gpt2",
        vocabulary=published.whole("vocab_size"),
        width=width,
        layers=layers,
        limit=limit,
        query_heads=heads,
        key_value_heads=heads,
        head_width=head_width,
        embedding=recipe(
            SummedEmbedding,
            positions=recipe(LearnedPositions, count=limit),
            dropout=published.probability("embd_pdrop", 0.1),
        ),
        attention=attentions if by_layer else attentions[0],
        feed_forward=recipe(
            FeedForward,
            inner=published.or_none("n_inner") or 4 * width,
            activation=published.one_of("activation_function", ACTIVATIONS, "gelu_new"),
        ),
        norm=norm,
        final_norm=norm,
        residual=recipe(PreNorm, dropout=dropout),
        head=causal_head(published, tied=True),
    )


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a GPT-2."""
    scales = [attention["scale"] for attention in config.attentions]
    return {
        "architectures": ["GPT2Model" if config.head is None else "GPT2LMHeadModel"],
        "vocab_size": config.vocabulary,
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.query_heads,
        "n_positions": config.limit,
        "n_inner": config.feed_forward["inner"],
        "activation_function": config.feed_forward["activation"],
        "layer_norm_epsilon": config.norm["eps"],
        "resid_pdrop": config.residual["dropout"],
        "embd_pdrop": config.embedding["dropout"],
        "attn_pdrop": config.attentions[0]["dropout"],
        "scale_attn_weights": scales[0] != 1.0,
        "scale_attn_by_inverse_layer_idx": isinstance(config.attention, tuple),
        "tie_word_embeddings": is_tied(config.head),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    layer, attention, feed_forward = "transformer.h.{n}", "layers.{n}.attention", "layers.{n}.feed_forward"
    split = tuple(
        KeyRule(f"{layer}.attn.c_attn.{{p}}", f"{attention}.inner.{name}.{{p}}", Transposed(), (number, number + 1, 3))
        for number, name in enumerate(("query", "key", "value"))
    )
    return KeyRules(
        KeyRule("transformer.wte.weight", "embedding.tokens.weight"),
        KeyRule("transformer.wpe.weight", "embedding.positions.weight"),
        KeyRule(f"{layer}.ln_1.{{p}}", f"{attention}.norm.{{p}}"),
        *split,
        KeyRule(f"{layer}.attn.c_proj.{{p}}", f"{attention}.inner.output.{{p}}", Transposed()),
        KeyRule(f"{layer}.ln_2.{{p}}", f"{feed_forward}.norm.{{p}}"),
        KeyRule(f"{layer}.mlp.c_fc.{{p}}", f"{feed_forward}.inner.up.{{p}}", Transposed()),
        KeyRule(f"{layer}.mlp.c_proj.{{p}}", f"{feed_forward}.inner.down.{{p}}", Transposed()),
        KeyRule("transformer.ln_f.{p}", "norm.{p}"),
        head_rule(config, "lm_head.weight"),
        Unused(f"{layer}.attn.bias", "the causal mask"),
        Unused(f"{layer}.attn.masked_bias", "the score of masked pairs"),
        prefix="transformer.",
        bare=config.head is None,
    )


GPT2 = Family(
    "gpt2",
    DecoderOnly,
    configure,
    publish,
    rules,
    initialisation=lambda config: Normal(layers=config.layers),
    default_tokens={"bos_token_id": 50256, "eos_token_id": 50256},
)
