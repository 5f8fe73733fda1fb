"""Llama (Touvron et al. 2023, arXiv:2302.13971) and the decoders built like it, SmolLM2 among them."""

from __future__ import annotations

from typing import Any

from ...checkpoints.rules import KeyRules, PairedHalves, Rule, Unused
from ...nn import ACTIVATIONS, GatedFeedForward, MultiHead, OwnHead, PreNorm, RMSNorm, TiedHead, TokenEmbedding
from ...nn.positions import Linear, LongWaves, Rotary, Stretch
from ...patterns import Causal
from ..config import Config, Recipe, recipe
from ..decoder_only import DecoderOnly
from .family import Family, GGUFNames
from .published import Published, task


def configure(published: Published) -> Config:
    """Our configuration of a published Llama."""
    width, heads = published.whole("hidden_size"), published.whole("num_attention_heads")
    if width % heads and published.get("head_dim") is None:
        raise published.refused("num_attention_heads", f"a divisor of hidden_size = {width}")
    head_width = published.whole("head_dim", width // heads)
    offset = published.one_of("attention_bias", (True, False), False)
    return Config(
        family="llama",
        vocabulary=published.whole("vocab_size"),
        width=width,
        layers=published.whole("num_hidden_layers"),
        limit=published.whole("max_position_embeddings", 2048),
        query_heads=heads,
        key_heads=published.whole("num_key_value_heads", heads),
        head_width=head_width,
        embedding=recipe(TokenEmbedding),
        attention=recipe(
            MultiHead, pattern=Causal(), rotary=_rotary(published, head_width), bias=offset, output_bias=offset
        ),
        feed_forward=recipe(
            GatedFeedForward,
            inner=published.whole("intermediate_size"),
            activation=published.one_of("hidden_act", ACTIVATIONS, "silu"),
            bias=published.one_of("mlp_bias", (True, False), False),
        ),
        norm=recipe(RMSNorm, epsilon=published.number("rms_norm_eps", 1e-6)),
        residual=PreNorm,
        head=causal_head(published, tied=False),
    )


def publish(config: Config) -> dict[str, Any]:
    """What a published Llama says of our configuration."""
    return {
        "architectures": [f"Llama{task(config.head)}"],
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "max_position_embeddings": config.limit,
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_width,
        "attention_bias": config.attention["bias"],
        "rope_parameters": _rope(config.attention["rotary"]),
        "intermediate_size": config.feed_forward["inner"],
        "hidden_act": config.feed_forward["activation"],
        "mlp_bias": config.feed_forward["bias"],
        "rms_norm_eps": config.norm["epsilon"],
        "tie_word_embeddings": is_tied(config.head),
    }


def causal_head(published: Published, *, tied: bool) -> Recipe | None:
    """The head of a decoder, ``tied`` unless its file says otherwise; ``None`` of a published body."""
    tied = published.one_of("tie_word_embeddings", (True, False), tied)
    return recipe(TiedHead if tied else OwnHead) if published.task("CausalLM") == "CausalLM" else None


def _rotary(published: Published, head_width: int) -> Rotary:
    """The rotation of queries and keys; newer files describe it in one object, older ones in two entries."""
    one = published.get("rope_parameters")
    stretched = Published(published.path, one or published.get("rope_scaling") or {})
    theta = (stretched if one else published).number("rope_theta", 10_000.0)
    kind = stretched.get("rope_type") or stretched.get("type") or "default"
    stretch: Stretch | None = None
    if kind == "linear":
        stretch = Linear(stretched.number("factor"))
    elif kind == "llama3":
        stretch = LongWaves(
            stretched.number("factor"),
            stretched.whole("original_max_position_embeddings"),
            stretched.number("low_freq_factor"),
            stretched.number("high_freq_factor"),
        )
    elif kind != "default":
        raise stretched.refused("rope_type", "one of 'default', 'linear', 'llama3'")
    return Rotary(head_width, theta, stretch)


def _rope(rotary: Rotary) -> dict[str, Any]:
    """And back."""
    said: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    match rotary.stretch:
        case Linear(factor):
            said |= {"rope_type": "linear", "factor": factor}
        case LongWaves(factor, trained_length, low, high):
            said |= {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": trained_length}
            said |= {"low_freq_factor": low, "high_freq_factor": high}
    return said


def rules(config: Config) -> KeyRules:
    """Published keys and ours."""
    layer, attention = "model.layers.{n}", "layers.{n}.attention.inner"
    return KeyRules(
        Rule("model.embed_tokens.weight", "embedding.tokens.weight"),
        Rule(f"{layer}.input_layernorm.weight", "layers.{n}.attention.norm.weight"),
        Rule(f"{layer}.self_attn.q_proj.{{p}}", f"{attention}.query.{{p}}"),
        Rule(f"{layer}.self_attn.k_proj.{{p}}", f"{attention}.key.{{p}}"),
        Rule(f"{layer}.self_attn.v_proj.{{p}}", f"{attention}.value.{{p}}"),
        Rule(f"{layer}.self_attn.o_proj.{{p}}", f"{attention}.output.{{p}}"),
        Rule(f"{layer}.post_attention_layernorm.weight", "layers.{n}.feed_forward.norm.weight"),
        Rule(f"{layer}.mlp.gate_proj.{{p}}", "layers.{n}.feed_forward.inner.gate.{p}"),
        Rule(f"{layer}.mlp.up_proj.{{p}}", "layers.{n}.feed_forward.inner.up.{p}"),
        Rule(f"{layer}.mlp.down_proj.{{p}}", "layers.{n}.feed_forward.inner.down.{p}"),
        Rule("model.norm.weight", "norm.weight"),
        _head(config, "lm_head.weight"),
        Unused(f"{layer}.self_attn.rotary_emb.inv_freq", "frequencies follow from the configuration"),
        prefix="model.",
        bare=config.head is None,
    )


def gguf_rules(config: Config) -> KeyRules:
    """GGUF's keys and ours."""
    layer, attention = "blk.{n}", "layers.{n}.attention.inner"
    return KeyRules(
        Rule("token_embd.weight", "embedding.tokens.weight"),
        Rule(f"{layer}.attn_norm.weight", "layers.{n}.attention.norm.weight"),
        Rule(f"{layer}.attn_q.{{p}}", f"{attention}.query.{{p}}", PairedHalves(config.query_heads)),
        Rule(f"{layer}.attn_k.{{p}}", f"{attention}.key.{{p}}", PairedHalves(config.key_heads)),
        Rule(f"{layer}.attn_v.{{p}}", f"{attention}.value.{{p}}"),
        Rule(f"{layer}.attn_output.{{p}}", f"{attention}.output.{{p}}"),
        Rule(f"{layer}.ffn_norm.weight", "layers.{n}.feed_forward.norm.weight"),
        Rule(f"{layer}.ffn_gate.{{p}}", "layers.{n}.feed_forward.inner.gate.{p}"),
        Rule(f"{layer}.ffn_up.{{p}}", "layers.{n}.feed_forward.inner.up.{p}"),
        Rule(f"{layer}.ffn_down.{{p}}", "layers.{n}.feed_forward.inner.down.{p}"),
        Rule("output_norm.weight", "norm.weight"),
        _head(config, "output.weight"),
    )


def _head(config: Config, published: str) -> Rule | Unused:
    if config.head is None:
        return Unused(published, "foretells the next token")
    if is_tied(config.head):
        return Unused(published, "the embedding once more")
    return Rule(published, "head.linear.weight")


def is_tied(head: Recipe | None) -> bool:
    """Whether a head is the embedding read backwards."""
    return head is not None and head.make is TiedHead


GGUF_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}

LLAMA = Family(
    "llama",
    DecoderOnly,
    configure,
    publish,
    rules,
    GGUFNames(GGUF_FIELDS, "token_embd.weight", "output.weight", gguf_rules),
)
