"""BART (Lewis et al. 2019, arXiv:1910.13461): the first Transformer with learned positions and GELU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ...formats.rules import KeyRule, KeyRules, SingleRow, Unused
from ...forms.patterns import Causal
from ...nn import (
    ACTIVATIONS,
    FeedForward,
    LearnedPositions,
    MultiHead,
    PostNorm,
    SummedEmbedding,
    TiedHead,
    UntiedHead,
    Xavier,
)
from ...nn.blocks import clamped_if_infinite
from ..config import Config, Recipe, recipe
from ..encoder_decoder import EncoderDecoder
from .family import Family
from .heads import bias_name, table_rules, tables_tied
from .published import Published

NORM = recipe(nn.LayerNorm, eps=1e-5)  # of every norm of BART, Marian and Whisper; their configurations do not state it
OFFSET = 2  # rows of the table of positions before that of position 0


def configure(published: Published) -> Config:
    """Our configuration of a published BART."""
    limit = published.whole("max_position_embeddings", 1024)
    positions = recipe(LearnedPositions, count=limit, offset=OFFSET)
    embedding = text_embedding(published, positions, NORM)
    common: dict[str, Any] = {"family": "bart", "limit": limit, "embedding": embedding}
    common |= {"vocabulary": published.whole("vocab_size")}
    encoder = half(published, "encoder", recipe(PostNorm, dropout=dropout(published)), **common)
    more: dict[str, Any] = {"encoder": encoder, "one_table": tied(published), "head": head(published)}
    return half(published, "decoder", encoder.residual, **common, **more)


def dropout(published: Published, usual: float = 0.1) -> float:
    """The probability with which numbers are dropped in training."""
    return published.probability("dropout", usual)


def tied(published: Published) -> bool:
    """Whether encoder, decoder and head have one table of token embeddings."""
    return published.flag("tie_word_embeddings", True)


def head(published: Published) -> Recipe | None:
    """The head of a model that writes, with a bias for every token."""
    task = published.task("ConditionalGeneration")
    make = TiedHead if tied(published) else UntiedHead
    return recipe(make, bias=True) if task == "ConditionalGeneration" else None


def text_embedding(published: Published, positions: Recipe, norm: Recipe | None, usual: float = 0.1) -> Recipe:
    """The embedding of a text: tokens and positions, scaled where the file says so."""
    scale = published.whole("d_model") ** 0.5 if published.flag("scale_embedding", False) else 1.0
    return recipe(SummedEmbedding, positions=positions, norm=norm, scale=scale, dropout=dropout(published, usual))


def half(
    published: Published,
    side: str,
    residual: Recipe,
    *,
    family: str,
    limit: int,
    vocabulary: int,
    embedding: Recipe,
    key_bias: bool = True,
    clamp: Callable[[Tensor], Tensor] = clamped_if_infinite,
    **more: Any,
) -> Config:
    """The encoder or the decoder of BART's relatives, whose configurations have the same names.

    ``clamp`` keeps float16 in range after each layer of the encoder; published code does so nowhere else.
    """
    published.one_of("is_decoder", (False,), False)
    heads, decodes = published.whole(f"{side}_attention_heads"), side == "decoder"
    attention = {"key_bias": key_bias, "dropout": published.probability("attention_dropout", 0.0)}
    settings: dict[str, Any] = {
        "family": family,
        "vocabulary": vocabulary,
        "width": published.whole("d_model"),
        "layers": published.layers(f"{side}_layers"),
        "limit": limit,
        "query_heads": heads,
        "key_value_heads": heads,
        "head_width": published.head_width("d_model", f"{side}_attention_heads"),
        "embedding": embedding,
        "attention": recipe(MultiHead, pattern=Causal() if decodes else None, **attention),
        "cross": recipe(MultiHead, **attention) if decodes else None,
        "feed_forward": recipe(
            FeedForward,
            inner=published.whole(f"{side}_ffn_dim"),
            activation=published.one_of("activation_function", ACTIVATIONS, "gelu"),
            dropout=published.probability("activation_dropout", 0.0),
        ),
        "norm": NORM,
        "residual": residual,
        "last_residual": None if decodes else recipe(residual.make, **dict(residual.settings), clamp=clamp),
        "head": None,
    }
    return Config(**(settings | more))


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a BART."""
    name = "BartModel" if config.head is None else "BartForConditionalGeneration"
    return {
        "architectures": [name],
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.limit,
        "tie_word_embeddings": tables_tied(config),
        **shared_fields(config),
    }


def shared_fields(config: Config) -> dict[str, Any]:
    """The fields that configurations of BART, Marian and Whisper share."""
    assert config.encoder is not None  # as `EncoderDecoder` checks
    sides = {"encoder": config.encoder, "decoder": config}
    return {
        **{f"{side}_layers": one.layers for side, one in sides.items()},
        **{f"{side}_attention_heads": one.query_heads for side, one in sides.items()},
        **{f"{side}_ffn_dim": one.feed_forward["inner"] for side, one in sides.items()},
        "d_model": config.width,
        "activation_function": config.feed_forward["activation"],
        "dropout": config.residual["dropout"],
        "attention_dropout": config.attentions[0]["dropout"],
        "activation_dropout": config.feed_forward["dropout"],
        "scale_embedding": config.embedding["scale"] != 1.0,
        "is_encoder_decoder": True,
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    return KeyRules(
        *table_rules(
            config,
            encoder="model.encoder.embed_tokens.weight",
            decoder="model.decoder.embed_tokens.weight",
            shared="model.shared.weight",
            head="lm_head.weight",
            writes_shared=tables_tied(config),
        ),
        *half_rules("encoder", "encoder."),
        *half_rules("decoder", ""),
        *(
            rule
            for side, ours in (("encoder", "encoder."), ("decoder", ""))
            for rule in (
                KeyRule(f"model.{side}.embed_positions.weight", f"{ours}embedding.positions.weight"),
                KeyRule(f"model.{side}.layernorm_embedding.{{p}}", f"{ours}embedding.norm.{{p}}"),
            )
        ),
        head_bias(config),
        prefix="model.",
        bare=config.head is None,
    )


def head_bias(config: Config) -> KeyRule | Unused:
    """The bias of the head."""
    if config.head is None:
        return Unused("final_logits_bias", "a bias of logits")
    return KeyRule("final_logits_bias", bias_name(config), SingleRow())


def half_rules(side: str, ours: str) -> tuple[KeyRule, ...]:
    """Key rules of the layers of the encoder or the decoder of BART, Marian and Whisper."""
    block, layer = f"model.{side}.layers.{{n}}", f"{ours}layers.{{n}}"
    steps = {"self_attn": "attention"} | ({"encoder_attn": "cross"} if side == "decoder" else {})
    names = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    attention = tuple(
        KeyRule(f"{block}.{step}.{their}.{{p}}", f"{layer}.{our_step}.inner.{our}.{{p}}")
        for step, our_step in steps.items()
        for their, our in names.items()
    )
    norms = tuple(
        KeyRule(f"{block}.{step}_layer_norm.{{p}}", f"{layer}.{our}.norm.{{p}}") for step, our in steps.items()
    )
    return (
        *attention,
        *norms,
        KeyRule(f"{block}.fc1.{{p}}", f"{layer}.feed_forward.inner.up.{{p}}"),
        KeyRule(f"{block}.fc2.{{p}}", f"{layer}.feed_forward.inner.down.{{p}}"),
        KeyRule(f"{block}.final_layer_norm.{{p}}", f"{layer}.feed_forward.norm.{{p}}"),
    )


BART = Family(
    "bart",
    EncoderDecoder,
    configure,
    publish,
    rules,
    initialisation=lambda config: Xavier(),
    default_tokens={
        "bos_token_id": 0,
        "pad_token_id": 1,
        **dict.fromkeys(("eos_token_id", "decoder_start_token_id", "forced_eos_token_id"), 2),
    },
)
