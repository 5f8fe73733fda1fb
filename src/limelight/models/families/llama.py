"""Llama (Touvron et al. 2023, arXiv:2302.13971) and the decoders built like it, SmolLM2 among them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...formats.errors import CheckpointError, damaged, shortened
from ...formats.gguf_files import GGUFFile
from ...formats.rules import KeyRule, KeyRules, PairedHalves, Unused
from ...forms.patterns import And, Causal, Pattern, Window
from ...nn import ACTIVATIONS, GatedFeedForward, MultiHead, OwnHead, PreNorm, RMSNorm, TiedHead, TokenEmbedding
from ...nn.positions import DynamicNTK, Linear, LongWaves, Rotary, Stretch, YaRN
from ..config import Config, Recipe, recipe
from ..decoder_only import DecoderOnly
from .family import Family, GGUFNames
from .heads import head_rule, is_tied
from .published import Published, class_suffix


def configure(published: Published) -> Config:
    """Our configuration of a published Llama."""
    offset = published.flag("attention_bias", False)
    return decoder(
        published, "llama", bias=offset, output_bias=offset, feed_forward_bias=published.flag("mlp_bias", False)
    )


def decoder(
    published: Published,
    family: str,
    *,
    patterns: Sequence[Pattern] = (),
    activation: str | None = None,
    feed_forward_bias: bool = False,
    tied: bool = False,
    **attention: Any,
) -> Config:
    """The configuration of a decoder built like Llama.

    Args:
        published: the published configuration.
        family: its family.
        patterns: what each layer sees; all of them ``Causal()`` by default.
        activation: that of the feed-forward step, where the file has no ``hidden_act``.
        feed_forward_bias: whether the feed-forward matrices carry an offset.
        tied: whether the head is the embedding, unless the file says otherwise.
        attention: further settings of `limelight.nn.MultiHead`.
    """
    heads, layers = published.whole("num_attention_heads"), published.layers("num_hidden_layers")
    given = published.or_none("head_dim")
    head_width = published.head_width("hidden_size", "num_attention_heads") if given is None else given
    rotary = _rotary(published, head_width)
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
        limit=_limit(published.whole("max_position_embeddings", 2048), rotary.stretch),
        query_heads=heads,
        key_heads=published.whole("num_key_value_heads", heads),
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


def publish(config: Config) -> dict[str, Any]:
    """What a published Llama says of our configuration."""
    return {
        "architectures": [f"Llama{class_suffix(config.head)}"],
        "attention_bias": config.attentions[0]["bias"],
        "mlp_bias": config.feed_forward["bias"],
        **shared_fields(config),
    }


def shared_fields(config: Config) -> dict[str, Any]:
    """The fields that configurations of Llama, Mistral, Qwen 3, ... share."""
    attention = config.attentions[0]
    return {
        "vocab_size": config.vocabulary,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "max_position_embeddings": _published_limit(config.limit, attention["rotary"].stretch),
        "num_attention_heads": config.query_heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_width,
        "attention_dropout": attention["dropout"],
        "rope_parameters": _rope(attention["rotary"]),
        "intermediate_size": config.feed_forward["inner"],
        "hidden_act": config.feed_forward["activation"],
        "rms_norm_eps": config.norm["epsilon"],
        "tie_word_embeddings": is_tied(config.head),
    }


def causal_head(published: Published, *, tied: bool) -> Recipe | None:
    """The head of a decoder, ``tied`` unless its file says otherwise; ``None`` of a published body."""
    tied = published.flag("tie_word_embeddings", tied)
    return recipe(TiedHead if tied else OwnHead) if published.task("CausalLM") == "CausalLM" else None


def window(length: int) -> Pattern:
    """The last ``length`` tokens, one's own among them."""
    return Causal() & Window(back=length - 1, ahead=0)


def window_length(pattern: Pattern) -> int | None:
    """And back; ``None`` where every earlier token is seen."""
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
    """And back."""
    lengths = [window_length(attention["pattern"]) for attention in config.attentions]
    found = [length for length in lengths if length is not None]
    window = {"use_sliding_window": bool(found), "sliding_window": found[0] if found else None}
    return {"layer_types": [KINDS[length is not None] for length in lengths], **window}


def _rotary(published: Published, head_width: int) -> Rotary:
    """The rotation of queries and keys; newer files describe it in one object, older ones in two entries."""
    one = published.object("rope_parameters")
    scaled = Published(published.path, one or published.object("rope_scaling"))
    theta = (scaled if one else published).number("rope_theta", published.defaults.get("rope_theta", 10_000.0))
    scaled.one_of("partial_rotary_factor", (1,), 1)
    stretch: Stretch | None = None
    match scaled.get("rope_type") or scaled.get("type") or "default":
        case "default":
            pass
        case "linear":
            stretch = Linear(scaled.number("factor"))
        case "llama3":
            stretch = LongWaves(
                scaled.number("factor"),
                scaled.whole("original_max_position_embeddings"),
                scaled.number("low_freq_factor"),
                scaled.number("high_freq_factor"),
            )
        case "dynamic":
            stretch = DynamicNTK(scaled.number("factor"), published.whole("max_position_embeddings", 2048))
        case "yarn":
            stretch = _yarn(scaled, published.whole("max_position_embeddings", 2048))
        case _:
            raise scaled.refused("rope_type", "one of 'default', 'linear', 'dynamic', 'yarn', 'llama3'")
    return Rotary(head_width, theta, stretch)


def _yarn(scaled: Published, limit: int) -> YaRN:
    """YaRN; its attention factor is given, or follows from one or two numbers (DeepSeek's), or from the factor."""
    trained = scaled.whole("original_max_position_embeddings", limit)
    factor = scaled.number("factor", limit / trained)
    magnitude = math.nan
    if scaled.get("attention_factor") is not None:
        magnitude = scaled.number("attention_factor")
    elif scaled.get("mscale") and scaled.get("mscale_all_dim"):
        magnitude = _mscale(factor, scaled.number("mscale")) / _mscale(factor, scaled.number("mscale_all_dim"))
    fast, slow = scaled.number("beta_fast", 32.0), scaled.number("beta_slow", 1.0)
    return YaRN(factor, trained, fast, slow, magnitude, scaled.flag("truncate", True))


def _limit(published: int, stretch: Stretch | None) -> int:
    """The most tokens of a text: those of the file, which with a dynamic stretch are those of the training."""
    return round(published * stretch.factor) if isinstance(stretch, DynamicNTK) else published


def _published_limit(limit: int | None, stretch: Stretch | None) -> int | None:
    """And back."""
    return stretch.trained_length if isinstance(stretch, DynamicNTK) else limit


def _mscale(factor: float, by: float) -> float:
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0


def _rope(rotary: Rotary) -> dict[str, Any]:
    """And back."""
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    match rotary.stretch:
        case Linear(factor):
            fields |= {"rope_type": "linear", "factor": factor}
        case LongWaves(factor, trained, low, high):
            fields |= {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": trained}
            fields |= {"low_freq_factor": low, "high_freq_factor": high}
        case DynamicNTK(factor, _):
            fields |= {"rope_type": "dynamic", "factor": factor}
        case YaRN(factor, trained, fast, slow, magnitude, whole_pairs):
            fields |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
            fields |= {"beta_fast": fast, "beta_slow": slow, "attention_factor": magnitude, "truncate": whole_pairs}
    return fields


def rules(config: Config) -> KeyRules:
    """Published keys and ours."""
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


def gguf_rules(config: Config) -> KeyRules:
    """GGUF's keys and ours."""
    layer, attention = "blk.{n}", "layers.{n}.attention.inner"
    return KeyRules(
        KeyRule("token_embd.weight", "embedding.tokens.weight"),
        KeyRule(f"{layer}.attn_norm.weight", "layers.{n}.attention.norm.weight"),
        KeyRule(f"{layer}.attn_q.{{p}}", f"{attention}.query.{{p}}", PairedHalves(config.query_heads)),
        KeyRule(f"{layer}.attn_k.{{p}}", f"{attention}.key.{{p}}", PairedHalves(config.key_heads)),
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
    """Refuse a file whose fields say that it is another model than ``config``."""
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
    """What a published configuration says under ``rope_scaling``."""
    found = {name: file.fields.get(f"llama.rope.{key}") for key, name in GGUF_SCALING.items()}
    published = Published(file.path, found)
    kind = published.one_of("rope_type", ("none", "linear", "yarn"), "none")
    magnitude = published.number("attn_factor", 1.0)  # llama.cpp multiplies YaRN's own with it
    if magnitude != 1.0 and (kind != "yarn" or GGUF_DIVISORS in file.tensors):
        raise published.refused("attn_factor", "1, but for YaRN")
    if GGUF_DIVISORS in file.tensors:
        return _gguf_waves(file, published)
    if kind == "none":
        return {"rope_type": "default"}
    fields = {name: value for name, value in found.items() if value is not None and name != "attn_factor"}
    if kind == "yarn":
        fields["attention_factor"] = magnitude * _mscale(published.number("factor"), 1.0)
    return fields


def _gguf_waves(file: GGUFFile, found: Published) -> dict[str, Any]:
    """Llama 3.1's rule, of which GGUF has only what each pair's frequency is divided by. The rest is as published."""
    divisors = file.read(GGUF_DIVISORS).double().flatten()
    if not (divisors > 0).all() or not divisors.isfinite().all():
        raise damaged(file.path, f"{GGUF_DIVISORS} are not numbers above 0")
    trained = found.whole("original_max_position_embeddings", 8192)
    waves = LongWaves(divisors.max().item() if len(divisors) else 1.0, trained)
    pairs = torch.arange(len(divisors), dtype=torch.float64, device="cpu")
    plain = found.number("rope_theta", 10_000.0) ** -(pairs / max(1, len(divisors)))
    stretched = waves.frequencies(plain, torch.tensor([[trained]], device="cpu"))
    if not torch.allclose(stretched * divisors, plain, rtol=1e-4, atol=0):
        raise CheckpointError(
            f"{file.path}: {GGUF_DIVISORS} must follow Llama 3.1's rule (factor {waves.factor:g}, trained with "
            f"{trained} tokens, waves from {waves.low:g} to {waves.high:g}), and does not. Take safetensors instead."
        )
    fields = {"rope_type": "llama3", "factor": waves.factor, "original_max_position_embeddings": trained}
    return fields | {"low_freq_factor": waves.low, "high_freq_factor": waves.high}


GGUF_DIVISORS = "rope_freqs.weight"

# What GGUF says of the rotation, and the published names of the same.
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

# What other models have that share the architecture's name, each with the values that change nothing.
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
    rules,
    GGUFNames(GGUF_FIELDS, "token_embd.weight", "output.weight", gguf_rules, gguf_scaling, gguf_check),
)
