"""Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama with fused projections, a sliding window and LongRoPE.

LongRoPE changes the rotation of every token once a text exceeds its original length, so a cache, and with it
generation, ends there (`Config.cached_limit`). Longer texts are read at once, without a cache.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...formats.errors import CheckpointError, damaged, shortened
from ...formats.gguf_files import GGUFFile
from ...formats.rules import KeyRule, KeyRules, Unused
from ...forms.patterns import Causal
from ...nn import PreNorm
from ..config import Config, recipe
from ..decoder_only import DecoderOnly
from .decoder import decoder, shared_fields, window, window_length
from .family import Family, GGUFNames
from .heads import head_rule
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published Phi-3."""
    published = published.with_defaults(max_position_embeddings=4096, rms_norm_eps=1e-5)
    published.probability("embd_pdrop", 0.0)  # transformers reads it too, and drops nothing
    length = published.or_none("sliding_window")
    config = decoder(
        published,
        "phi3",
        patterns=[Causal() if length is None else window(length)],
        partial_rotary=True,
        bias=False,
        output_bias=False,
    )
    return replace(config, residual=recipe(PreNorm, dropout=published.probability("resid_pdrop", 0.0)))


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Phi-3."""
    fields = shared_fields(config)
    trained = fields["rope_parameters"].get("original_max_position_embeddings", config.limit)
    return {
        "architectures": [f"Phi3{class_suffix(config.head)}"],
        "sliding_window": window_length(config.attentions[0]["pattern"]),
        "resid_pdrop": config.residual["dropout"],
        "original_max_position_embeddings": trained,
        **fields,
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    layer, ours = "model.layers.{n}", "layers.{n}"
    return KeyRules(
        KeyRule("model.embed_tokens.weight", "embedding.tokens.weight"),
        KeyRule(f"{layer}.input_layernorm.weight", f"{ours}.attention.norm.weight"),
        *_fused(config, f"{layer}.self_attn.qkv_proj", f"{layer}.mlp.gate_up_proj"),
        KeyRule(f"{layer}.self_attn.o_proj.weight", f"{ours}.attention.inner.output.weight"),
        KeyRule(f"{layer}.post_attention_layernorm.weight", f"{ours}.feed_forward.norm.weight"),
        KeyRule(f"{layer}.mlp.down_proj.weight", f"{ours}.feed_forward.inner.down.weight"),
        KeyRule("model.norm.weight", "norm.weight"),
        head_rule(config, "lm_head.weight"),
        Unused(f"{layer}.self_attn.rotary_emb.inv_freq", "frequencies follow from the configuration"),
        prefix="model.",
        bare=config.head is None,
    )


def _fused(config: Config, qkv: str, gate_up: str) -> tuple[KeyRule, ...]:
    """Queries, keys and values of all heads in one matrix, and the gate and up projections in another."""
    attention, feed_forward = "layers.{n}.attention.inner", "layers.{n}.feed_forward.inner"
    heads, of = config.query_heads, config.query_heads + 2 * config.key_value_heads
    ends = {
        "query": (0, heads),
        "key": (heads, heads + config.key_value_heads),
        "value": (heads + config.key_value_heads, of),
    }
    return (
        *(
            KeyRule(f"{qkv}.weight", f"{attention}.{name}.weight", part=(begin, end, of))
            for name, (begin, end) in ends.items()
        ),
        KeyRule(f"{gate_up}.weight", f"{feed_forward}.gate.weight", part=(0, 1, 2)),
        KeyRule(f"{gate_up}.weight", f"{feed_forward}.up.weight", part=(1, 2, 2)),
    )


# -- GGUF --

GGUF_FACTORS = {f"{name}_factor": f"rope_factors_{name}.weight" for name in ("short", "long")}
GGUF_FIELDS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}


def gguf_rules(config: Config) -> KeyRules:
    """Key rules between GGUF files and our modules."""
    layer, ours = "blk.{n}", "layers.{n}"
    return KeyRules(
        KeyRule("token_embd.weight", "embedding.tokens.weight"),
        KeyRule(f"{layer}.attn_norm.weight", f"{ours}.attention.norm.weight"),
        *_fused(config, f"{layer}.attn_qkv", f"{layer}.ffn_up"),
        KeyRule(f"{layer}.attn_output.weight", f"{ours}.attention.inner.output.weight"),
        KeyRule(f"{layer}.ffn_norm.weight", f"{ours}.feed_forward.norm.weight"),
        KeyRule(f"{layer}.ffn_down.weight", f"{ours}.feed_forward.inner.down.weight"),
        KeyRule("output_norm.weight", "norm.weight"),
        head_rule(config, "output.weight"),
        *(
            Unused(name, "the factors of LongRoPE, which are part of the configuration")
            for name in GGUF_FACTORS.values()
        ),
    )


def gguf_scaling(file: GGUFFile) -> dict[str, Any]:
    """The published ``rope_scaling``: LongRoPE where the file has its factors; a part of each head may be rotated."""
    fields, width = file.fields, file.fields.get("phi3.rope.dimension_count")
    found: dict[str, Any] = {"rope_type": "default"}
    if isinstance(width, int) and isinstance(heads := fields.get("phi3.attention.head_count"), int):
        found["partial_rotary_factor"] = width * heads / max(1, int(fields.get("phi3.embedding_length") or 0))
    stored = {name: key for name, key in GGUF_FACTORS.items() if key in file.tensors}
    if len(stored) == 1:
        raise damaged(
            file.path, f"it has {', '.join(stored.values())} alone, and LongRoPE needs short and long factors"
        )
    if stored:
        found |= {"rope_type": "longrope", **{name: file.read(key).flatten().tolist() for name, key in stored.items()}}
        found["original_max_position_embeddings"] = fields.get("phi3.rope.scaling.original_context_length")
        found["attention_factor"] = fields.get("phi3.rope.scaling.attn_factor")
    return found


def gguf_check(file: GGUFFile, config: Config) -> None:
    """Refuse a file whose rotation is scaled in a way that Phi-3 has not."""
    kind = file.fields.get("phi3.rope.scaling.type", "none")
    if kind not in ("none", "longrope"):
        raise CheckpointError(
            f"{file.path} says phi3.rope.scaling.type = {shortened(kind)}, and Limelight reads there none or longrope. "
            "Take the model as safetensors."
        )


PHI3 = Family(
    "phi3",
    DecoderOnly,
    configure,
    publish,
    rules,
    GGUFNames(GGUF_FIELDS, "token_embd.weight", "output.weight", gguf_rules, gguf_scaling, gguf_check),
    default_tokens={"bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000},
)
