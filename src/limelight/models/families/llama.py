"""Llama (Touvron et al. 2023, arXiv:2302.13971) and the decoders built like it, SmolLM2 among them."""

from __future__ import annotations

from typing import Any

import torch

from ...formats.errors import CheckpointError, damaged, shortened
from ...formats.gguf_files import GGUFFile
from ...formats.rules import KeyRule, KeyRules, PairedHalves, Unused
from ...nn.positions import Llama3Scaling
from ..config import Config
from ..decoder_only import DecoderOnly
from .decoder import decoder, decoder_rules, shared_fields
from .family import Family, GGUFNames
from .heads import head_rule
from .published import Published, class_suffix
from .rope import yarn_factor


def configure(published: Published) -> Config:
    """Our configuration of a published Llama."""
    bias = published.flag("attention_bias", False)
    return decoder(published, "llama", bias=bias, output_bias=bias, feed_forward_bias=published.flag("mlp_bias", False))


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Llama."""
    return {
        "architectures": [f"Llama{class_suffix(config.head)}"],
        "attention_bias": config.attentions[0]["bias"],
        "mlp_bias": config.feed_forward["bias"],
        **shared_fields(config),
    }


def gguf_rules(config: Config) -> KeyRules:
    """Key rules between GGUF files and our modules."""
    layer, attention = "blk.{n}", "layers.{n}.attention.inner"
    return KeyRules(
        KeyRule("token_embd.weight", "embedding.tokens.weight"),
        KeyRule(f"{layer}.attn_norm.weight", "layers.{n}.attention.norm.weight"),
        KeyRule(f"{layer}.attn_q.{{p}}", f"{attention}.query.{{p}}", PairedHalves(config.query_heads)),
        KeyRule(f"{layer}.attn_k.{{p}}", f"{attention}.key.{{p}}", PairedHalves(config.key_value_heads)),
        KeyRule(f"{layer}.attn_v.{{p}}", f"{attention}.value.{{p}}"),
        KeyRule(f"{layer}.attn_output.{{p}}", f"{attention}.output.{{p}}"),
        KeyRule(f"{layer}.ffn_norm.weight", "layers.{n}.feed_forward.norm.weight"),
        KeyRule(f"{layer}.ffn_gate.{{p}}", "layers.{n}.feed_forward.inner.gate.{p}"),
        KeyRule(f"{layer}.ffn_up.{{p}}", "layers.{n}.feed_forward.inner.up.{p}"),
        KeyRule(f"{layer}.ffn_down.{{p}}", "layers.{n}.feed_forward.inner.down.{p}"),
        KeyRule("output_norm.weight", "norm.weight"),
        head_rule(config, "output.weight"),
        Unused(GGUF_DIVISORS, "the rotation's frequencies, which follow from the configuration"),
    )


def gguf_check(file: GGUFFile, config: Config) -> None:
    """Refuse a file whose fields contradict ``config``."""
    width = (config.head_width,)
    allowed = GGUF_NEUTRAL | {"rope.dimension_count": width, "attention.value_length": width}
    for key, values in allowed.items():
        value = file.fields.get(f"llama.{key}", values[0])
        if value not in values:
            raise CheckpointError(
                f"{file.path} says llama.{key} = {shortened(value)}, and Limelight reads there "
                f"{' or '.join(map(str, values))}. Take the model as safetensors."
            )


def gguf_scaling(file: GGUFFile) -> dict[str, Any]:
    """The published ``rope_scaling``, from the fields of a GGUF file."""
    found = {name: file.fields.get(f"llama.rope.{key}") for key, name in GGUF_SCALING.items()}
    published = Published(file.path, found)
    kind = published.one_of("rope_type", ("none", "linear", "yarn"), "none")
    attention_factor = published.number("attn_factor", 1.0)  # llama.cpp multiplies YaRN's own with it
    if attention_factor != 1.0 and (kind != "yarn" or GGUF_DIVISORS in file.tensors):
        raise published.refused("attn_factor", "1, but for YaRN")
    if GGUF_DIVISORS in file.tensors:
        return _gguf_llama3(file, published)
    if kind == "none":
        return {"rope_type": "default"}
    fields = {name: value for name, value in found.items() if value is not None and name != "attn_factor"}
    if kind == "yarn":
        fields["attention_factor"] = attention_factor * yarn_factor(published.number("factor"), 1.0)
    return fields


def _gguf_llama3(file: GGUFFile, found: Published) -> dict[str, Any]:
    """Llama 3.1's scaling. GGUF stores only the divisor of each pair's frequency; other values are as published."""
    divisors = file.read(GGUF_DIVISORS).double().flatten()
    if not (divisors > 0).all() or not divisors.isfinite().all():
        raise damaged(file.path, f"{GGUF_DIVISORS} are not numbers above 0")
    trained = found.whole("original_max_position_embeddings", 8192)
    scaling = Llama3Scaling(divisors.max().item() if len(divisors) else 1.0, trained)
    pairs = torch.arange(len(divisors), dtype=torch.float64, device="cpu")
    plain = found.number("rope_theta", 10_000.0) ** -(pairs / max(1, len(divisors)))
    scaled = scaling.frequencies(plain, torch.tensor([[trained]], device="cpu"))
    if not torch.allclose(scaled * divisors, plain, rtol=1e-4, atol=0):
        raise CheckpointError(
            f"{file.path}: {GGUF_DIVISORS} must follow Llama 3.1's rule (factor {scaling.factor:g}, trained with "
            f"{trained} tokens, waves from {scaling.low:g} to {scaling.high:g}), and does not. "
            "Take safetensors instead."
        )
    fields = {"rope_type": "llama3", "factor": scaling.factor, "original_max_position_embeddings": trained}
    return fields | {"low_freq_factor": scaling.low, "high_freq_factor": scaling.high}


GGUF_DIVISORS = "rope_freqs.weight"

# GGUF's fields of the rotation, and their published names.
GGUF_SCALING = {
    "freq_base": "rope_theta",
    "scaling.type": "rope_type",
    "scaling.factor": "factor",
    "scaling.original_context_length": "original_max_position_embeddings",
    "scaling.yarn_beta_fast": "beta_fast",
    "scaling.yarn_beta_slow": "beta_slow",
    "scaling.attn_factor": "attn_factor",
}

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

# Fields that other models of the same architecture name use, with the values at which they have no effect.
GGUF_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scale_linear": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attention.causal": (True,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "expert_count": (0,),
}

LLAMA = Family(
    "llama",
    DecoderOnly,
    configure,
    publish,
    decoder_rules,
    GGUFNames(GGUF_FIELDS, "token_embd.weight", "output.weight", gguf_rules, gguf_scaling, gguf_check),
    default_tokens={"bos_token_id": 1, "eos_token_id": 2},
)
