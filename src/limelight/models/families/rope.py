"""Rotary positions of published configurations: the rotation that a file describes, and the description of ours."""

from __future__ import annotations

import math
from typing import Any

from ...nn.positions import DynamicNTK, LinearScaling, Llama3Scaling, LongRope, RopeScaling, Rotary, YaRN
from .published import Published


def rotary_of(published: Published, head_width: int, *, partial: bool = False) -> Rotary:
    """The rotation of queries and keys; newer files describe it in one object, older ones in several entries.

    Args:
        published: the published configuration.
        head_width: features of each head.
        partial: whether the family may rotate the first features of each head alone.
    """
    one = published.object("rope_parameters")
    scaled = Published(published.path, one or published.object("rope_scaling"))
    theta = (scaled if one else published).number("rope_theta", published.defaults.get("rope_theta", 10_000.0))
    width = head_width
    if partial:
        share = scaled.probability("partial_rotary_factor", published.probability("partial_rotary_factor", 1.0))
        width = int(head_width * share)
    else:
        scaled.one_of("partial_rotary_factor", (1,), 1)
    scaling: RopeScaling | None = None
    match scaled.get("rope_type") or scaled.get("type") or "default":
        case "longrope" | "su":
            scaling = _longrope(published, scaled, width)
        case "yarn" if scaled.get("short_factor") is not None:  # so the first files of Phi-3 call it
            scaling = _longrope(published, scaled, width)
        case "default":
            pass
        case "linear":
            scaling = LinearScaling(scaled.number("factor"))
        case "llama3":
            scaling = Llama3Scaling(
                scaled.number("factor"),
                scaled.whole("original_max_position_embeddings"),
                scaled.number("low_freq_factor"),
                scaled.number("high_freq_factor"),
            )
        case "dynamic":
            scaling = DynamicNTK(scaled.number("factor"), published.whole("max_position_embeddings", 2048))
        case "yarn":
            scaling = _yarn(scaled, published.whole("max_position_embeddings", 2048))
        case _:
            raise scaled.refused("rope_type", "one of 'default', 'linear', 'dynamic', 'yarn', 'llama3', 'longrope'")
    return Rotary(width, theta, scaling)


def _longrope(published: Published, scaled: Published, width: int) -> LongRope:
    """LongRoPE; as in transformers, an ``original_max_position_embeddings`` beside the scaling comes first."""
    limit = published.whole("max_position_embeddings", 2048)
    inner = scaled.whole("original_max_position_embeddings", limit)
    original = published.whole("original_max_position_embeddings", inner)
    factor = scaled.number("factor", limit / original)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 and original > 1 else 1.0
    short, long = (scaled.numbers(f"{name}_factor", width // 2) for name in ("short", "long"))
    return LongRope(short, long, original, scaled.number("attention_factor", usual))


def _yarn(scaled: Published, limit: int) -> YaRN:
    """YaRN; its attention factor is given, or follows from one or two numbers (DeepSeek's), or from the factor."""
    original = scaled.whole("original_max_position_embeddings", limit)
    factor = scaled.number("factor", limit / original)
    magnitude = math.nan
    if scaled.get("attention_factor") is not None:
        magnitude = scaled.number("attention_factor")
    elif scaled.get("mscale") and scaled.get("mscale_all_dim"):
        magnitude = yarn_factor(factor, scaled.number("mscale")) / yarn_factor(factor, scaled.number("mscale_all_dim"))
    fast, slow = scaled.number("beta_fast", 32.0), scaled.number("beta_slow", 1.0)
    return YaRN(factor, original, fast, slow, magnitude, scaled.flag("truncate", True))


def limit_of(published: int, scaling: RopeScaling | None) -> int:
    """The most tokens of a text: those of the file, which with a dynamic scaling are those of the training."""
    return round(published * scaling.factor) if isinstance(scaling, DynamicNTK) else published


def published_limit(limit: int | None, scaling: RopeScaling | None) -> int | None:
    """The published ``max_position_embeddings`` of our limit, the inverse of `limit_of`."""
    return scaling.original_max_positions if isinstance(scaling, DynamicNTK) else limit


def rope_fields(rotary: Rotary, head_width: int) -> dict[str, Any]:
    """The published ``rope_parameters`` of a rotation, the inverse of `rotary_of`."""
    fields: dict[str, Any] = {"rope_type": "default", "rope_theta": rotary.theta}
    match rotary.scaling:
        case LinearScaling(factor):
            fields |= {"rope_type": "linear", "factor": factor}
        case Llama3Scaling(factor, original, low, high):
            fields |= {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original}
            fields |= {"low_freq_factor": low, "high_freq_factor": high}
        case DynamicNTK(factor, _):
            fields |= {"rope_type": "dynamic", "factor": factor}
        case YaRN(factor, original, fast, slow, magnitude, whole_pairs):
            fields |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
            fields |= {"beta_fast": fast, "beta_slow": slow, "attention_factor": magnitude, "truncate": whole_pairs}
        case LongRope(short, long, original, magnitude):
            fields |= {"rope_type": "longrope", "short_factor": [*short], "long_factor": [*long]}
            fields |= {"original_max_position_embeddings": original, "attention_factor": magnitude}
    if rotary.width != head_width:
        share = rotary.width / head_width
        rounded_down = int(share * head_width) < rotary.width  # a factor is read by cutting the product
        fields["partial_rotary_factor"] = math.nextafter(share, 1.0) if rounded_down else share
    return fields


def yarn_factor(factor: float, by: float) -> float:
    """YaRN's attention factor for texts ``factor`` times as long: ``0.1 * by * ln(factor) + 1``."""
    return 0.1 * by * math.log(factor) + 1.0 if factor > 1 else 1.0
