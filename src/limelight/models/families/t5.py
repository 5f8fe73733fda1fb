"""T5, 1.0 and 1.1 (Raffel et al. 2020, arXiv:1910.10683; Shazeer 2020, arXiv:2002.05202): relative position biases."""

from __future__ import annotations

from typing import Any

from ...formats.rules import KeyRule, KeyRules, Unused
from ...forms.patterns import Causal
from ...forms.scores import T5Buckets
from ...nn import (
    ACTIVATIONS,
    DistanceBias,
    FanIn,
    FeedForward,
    GatedFeedForward,
    MultiHead,
    PreNorm,
    RMSNorm,
    TiedHead,
    TokenEmbedding,
    UntiedHead,
)
from ...nn.blocks import clamped_if_infinite
from ..config import Config, Recipe, recipe
from ..encoder_decoder import EncoderDecoder
from .family import Family
from .heads import table_rules
from .published import Published

GELU = "gelu_new"  # what "gated-gelu" means


def configure(published: Published) -> Config:
    """Our configuration of a published T5."""
    published.one_of("is_decoder", (False,), False)
    encoder = _half(published, "encoder")
    return _half(published, "decoder", encoder=encoder, one_table=True, head=_head(published))


def _half(published: Published, side: str, **more: Any) -> Config:
    decodes = side == "decoder"
    heads, width = published.whole("num_heads"), published.whole("d_model")
    dropout = published.probability("dropout_rate", 0.1)
    norm = recipe(RMSNorm, epsilon=published.number("layer_norm_epsilon", 1e-6))
    attention = {"scale": 1.0, "bias": False, "output_bias": False, "dropout": dropout}
    buckets = T5Buckets(
        published.whole("relative_attention_num_buckets", 32),
        published.whole("relative_attention_max_distance", 128),
        bidirectional=not decodes,
    )
    layers = published.layers("num_layers")
    if decodes and published.get("num_decoder_layers") is not None:
        layers = published.layers("num_decoder_layers")
    settings: dict[str, Any] = {
        "family": "t5",
        "vocabulary": published.whole("vocab_size"),
        "width": width,
        "layers": layers,
        "limit": None,
        "query_heads": heads,
        "key_value_heads": heads,
        "head_width": published.whole("d_kv"),
        "embedding": recipe(TokenEmbedding, dropout=dropout),
        "attention": recipe(MultiHead, pattern=Causal() if decodes else None, **attention),
        "cross": recipe(MultiHead, **attention) if decodes else None,
        "feed_forward": _feed_forward(published, dropout),
        "norm": norm,
        "final_norm": norm,
        "scores": recipe(DistanceBias, buckets=buckets),
        "residual": recipe(PreNorm, dropout=dropout, clamp=clamped_if_infinite),
        "head": None,
    }
    return Config(**(settings | more))


def _feed_forward(published: Published, dropout: float) -> Recipe:
    """``"relu"`` of 1.0, ``"gated-gelu"`` of 1.1."""
    given = published.get("feed_forward_proj") or "relu"
    gated, name = str(given).startswith("gated-"), str(given).removeprefix("gated-")
    activation = GELU if given == "gated-gelu" else name
    if activation not in ACTIVATIONS:
        raise published.refused("feed_forward_proj", f"one of {', '.join(ACTIVATIONS)}, or that behind 'gated-'")
    published.one_of("is_gated_act", (gated,), gated)
    published.one_of("dense_act_fn", (activation,), activation)
    inner = published.whole("d_ff")
    if gated:
        return recipe(GatedFeedForward, inner=inner, activation=activation, dropout=dropout)
    return recipe(FeedForward, inner=inner, activation=activation, bias=False, dropout=dropout)


def _head(published: Published) -> Recipe | None:
    """1.0 scales the states, and its head is tied to the token embedding; 1.1 has an untied head.

    Files of 1.1 have ``tie_word_embeddings`` false, newer ones ``scale_decoder_outputs``.
    """
    if published.task("ConditionalGeneration") != "ConditionalGeneration":
        return None
    if published.flag("scale_decoder_outputs", published.flag("tie_word_embeddings", True)):
        return recipe(TiedHead, scale=published.whole("d_model") ** -0.5)
    stored = published.tensors is None or "lm_head.weight" in published.tensors
    return recipe(UntiedHead) if stored else recipe(TiedHead)


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a T5."""
    assert config.encoder is not None  # as `EncoderDecoder` checks
    assert config.scores is not None
    feed_forward, buckets = config.feed_forward, config.scores["buckets"]
    activation = feed_forward["activation"]
    gated = feed_forward.make is GatedFeedForward
    scaled = config.head is None or config.head.setting("scale", 1.0) != 1.0
    return {
        "architectures": ["T5Model" if config.head is None else "T5ForConditionalGeneration"],
        "vocab_size": config.vocabulary,
        "d_model": config.width,
        "d_kv": config.head_width,
        "d_ff": feed_forward["inner"],
        "num_layers": config.encoder.layers,
        "num_decoder_layers": config.layers,
        "num_heads": config.query_heads,
        "feed_forward_proj": ("gated-gelu" if activation == GELU else f"gated-{activation}") if gated else activation,
        "relative_attention_num_buckets": buckets.count,
        "relative_attention_max_distance": buckets.max_distance,
        "layer_norm_epsilon": config.norm["epsilon"],
        "dropout_rate": config.residual["dropout"],
        "is_encoder_decoder": True,
        "scale_decoder_outputs": scaled,
        "tie_word_embeddings": config.head is None or config.head.make is TiedHead,
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    gated = config.feed_forward.make is GatedFeedForward
    return KeyRules(
        *table_rules(
            config,
            encoder="encoder.embed_tokens.weight",
            decoder="decoder.embed_tokens.weight",
            shared="shared.weight",
            head="lm_head.weight",
            writes_shared=True,
        ),
        *_half_rules("encoder", "encoder.", 1, gated),
        *_half_rules("decoder", "", 2, gated),
        *_attention_rules("decoder.block.{n}.layer.1.EncDecAttention", "layers.{n}.cross.inner"),
        KeyRule("decoder.block.{n}.layer.1.layer_norm.weight", "layers.{n}.cross.norm.weight"),
        Unused("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", "not used by any T5"),
    )


def _half_rules(published: str, ours: str, last: int, gated: bool) -> tuple[KeyRule, ...]:
    block, layer = f"{published}.block.{{n}}.layer", f"{ours}layers.{{n}}"
    names = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if gated else {"wi": "up", "wo": "down"}
    return (
        *_attention_rules(f"{block}.0.SelfAttention", f"{layer}.attention.inner"),
        KeyRule(f"{block}.0.layer_norm.weight", f"{layer}.attention.norm.weight"),
        KeyRule(f"{published}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", f"{ours}scores.weight"),
        *(
            KeyRule(f"{block}.{last}.DenseReluDense.{their}.weight", f"{layer}.feed_forward.inner.{our}.weight")
            for their, our in names.items()
        ),
        KeyRule(f"{block}.{last}.layer_norm.weight", f"{layer}.feed_forward.norm.weight"),
        KeyRule(f"{published}.final_layer_norm.weight", f"{ours}norm.weight"),
    )


def _attention_rules(published: str, ours: str) -> tuple[KeyRule, ...]:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    return tuple(KeyRule(f"{published}.{their}.weight", f"{ours}.{our}.weight") for their, our in names.items())


# Float32 in float16 models, as in the published ones: this matrix and the residual stream would overflow in float16.
WIDE = ("feed_forward.inner.down.weight",)

T5 = Family(
    "t5",
    EncoderDecoder,
    configure,
    publish,
    rules,
    float32_in_float16=WIDE,
    initialisation=lambda config: FanIn(config.width),
    default_tokens={"pad_token_id": 0, "eos_token_id": 1},
)
