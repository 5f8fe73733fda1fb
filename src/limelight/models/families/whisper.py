"""Whisper (Radford et al. 2022, arXiv:2212.04356): an encoder of speech and a decoder of its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...formats.ctranslate2_files import CTranslate2File
from ...formats.errors import CheckpointError
from ...formats.rules import KeyRule, KeyRules
from ...nn import LearnedPositions, PreNorm, SpectrumEmbedding, TiedHead, UntiedHead
from ...nn.blocks import clamped
from ...text import Tokenizer
from ..config import Config, recipe
from ..encoder_decoder import EncoderDecoder
from .bart import NORM, dropout, half, half_rules, shared_fields, text_embedding, tied
from .family import CTranslate2Names, Family
from .heads import head_rule, is_tied
from .published import Published


def configure(published: Published) -> Config:
    """Our configuration of a published Whisper."""
    published.one_of("use_weighted_layer_sum", (False,), False)  # of a head that is not built here
    frames, tokens = published.whole("max_source_positions", 1500), published.whole("max_target_positions", 448)
    drop, residual = dropout(published, 0.0), recipe(PreNorm, dropout=dropout(published, 0.0))
    common: dict[str, Any] = {"family": "whisper", "vocabulary": published.whole("vocab_size"), "key_bias": False}
    common |= {"final_norm": NORM}
    spectrum = recipe(
        SpectrumEmbedding,
        bands=published.whole("num_mel_bins", 80),
        positions=recipe(LearnedPositions, count=frames),
        dropout=drop,
    )
    text = text_embedding(published, recipe(LearnedPositions, count=tokens), None, 0.0)
    encoder = half(published, "encoder", residual, limit=frames, embedding=spectrum, clamp=clamped, **common)
    writes = published.task("ConditionalGeneration") == "ConditionalGeneration"
    return half(
        published,
        "decoder",
        residual,
        limit=tokens,
        embedding=text,
        encoder=encoder,
        head=recipe(TiedHead if tied(published) else UntiedHead) if writes else None,
        **common,
    )


def publish(config: Config) -> dict[str, Any]:
    """The published fields of our configuration of a Whisper."""
    assert config.encoder is not None  # as `EncoderDecoder` checks
    return {
        "architectures": ["WhisperModel" if config.head is None else "WhisperForConditionalGeneration"],
        "vocab_size": config.vocabulary,
        "num_mel_bins": config.encoder.embedding["bands"],
        "max_source_positions": config.encoder.limit,
        "max_target_positions": config.limit,
        "tie_word_embeddings": config.head is None or is_tied(config.head),
        **shared_fields(config),
    }


def rules(config: Config) -> KeyRules:
    """Key rules between published checkpoints and our modules."""
    return KeyRules(
        KeyRule("model.decoder.embed_tokens.weight", "embedding.tokens.weight"),
        KeyRule("model.encoder.conv1.{p}", "encoder.embedding.first.{p}"),
        KeyRule("model.encoder.conv2.{p}", "encoder.embedding.second.{p}"),
        *half_rules("encoder", "encoder."),
        *half_rules("decoder", ""),
        *(
            rule
            for side, ours in (("encoder", "encoder."), ("decoder", ""))
            for rule in (
                KeyRule(f"model.{side}.embed_positions.weight", f"{ours}embedding.positions.weight"),
                KeyRule(f"model.{side}.layer_norm.{{p}}", f"{ours}norm.{{p}}"),
            )
        ),
        head_rule(config, "proj_out.weight"),
        prefix="model.",
        bare=config.head is None,
    )


# -- CTranslate2 --

ENGLISH = 51_864  # tokens of the models for English alone
GELU = 3  # its number of that activation
FIXED = {"alibi": 0, "pre_norm": 1, "scale_embeddings": 0, "start_from_zero_embedding": 0, "activation": GELU}


def describe(file: CTranslate2File) -> dict[str, Any]:
    """The published configuration, from the sizes in the file."""
    for side in ("encoder", "decoder"):
        for name, wanted in FIXED.items():
            value = file.numbers.get(f"{side}/{name}", wanted)
            if value != wanted:
                raise CheckpointError(f"{file.path} says {side}/{name} = {value}, and Whisper has {wanted}.")
    for key in file.keys():  # noqa: SIM118
        _check_key_bias(file, key)

    def size(name: str, dimension: int) -> int:
        shape = file.shape(name) if name in file.keys() else ()  # noqa: SIM118
        if len(shape) <= dimension:
            raise CheckpointError(f"{file.path} lacks {name}, or not all of its dimensions. Is it of a Whisper?")
        return shape[dimension]

    def layers(side: str) -> int:
        return len({key.split("/")[1] for key in file.keys() if key.startswith(f"{side}/layer_")} - {"layer_norm"})  # noqa: SIM118

    return {
        "vocab_size": size("decoder/embeddings/weight", 0),
        "d_model": size("decoder/embeddings/weight", 1),
        "num_mel_bins": size("encoder/conv1/weight", 1),
        "max_source_positions": size("encoder/position_encodings/encodings", 0),
        "max_target_positions": size("decoder/position_encodings/encodings", 0),
        **{f"{side}_layers": layers(side) for side in ("encoder", "decoder")},
        **{f"{side}_attention_heads": file.numbers.get(f"{side}/num_heads") for side in ("encoder", "decoder")},
        **{f"{side}_ffn_dim": size(f"{side}/layer_0/ffn/linear_0/weight", 0) for side in ("encoder", "decoder")},
    }


def _check_key_bias(file: CTranslate2File, key: str) -> None:
    """Keys have no bias in Whisper; where CTranslate2 stores one, among those of its neighbours, it is zero."""
    parts = {"self_attention/linear_0/bias": (1, 3), "/attention/linear_1/bias": (0, 2)}
    for ending, (number, of) in parts.items():
        if key.endswith(ending) and file.read(key).chunk(of)[number].any():
            raise CheckpointError(f"{file.path} has a bias for keys in {key}, and Whisper has none.")


def special_token_ids(tokenizer: Tokenizer, config: Mapping[str, Any]) -> dict[str, Any]:
    """Ids of the special tokens, by their published names."""
    names = ("startoftranscript", "endoftext", "notimestamps")
    begin, end, no_times = (tokenizer.backend.token_to_id(f"<|{name}|>") for name in names)
    english = tokenizer.size <= ENGLISH  # multilingual models need tokens for language and task
    forced = [[1, no_times]] if english else [[1, None], [2, None], [3, no_times]]
    found = {
        "decoder_start_token_id": begin,
        **{f"{name}_token_id": end for name in ("bos", "eos", "pad")},
        "forced_decoder_ids": None if no_times is None else forced,
        "suppress_tokens": config.get("suppress_ids"),
        "begin_suppress_tokens": config.get("suppress_ids_begin"),
    }
    return {name: value for name, value in found.items() if value is not None}


def ctranslate2_rules(config: Config) -> KeyRules:
    """Key rules between CTranslate2's variables and our modules."""
    return KeyRules(
        KeyRule("decoder/embeddings/weight", "embedding.tokens.weight"),
        KeyRule("encoder/conv1/{p}", "encoder.embedding.first.{p}"),
        KeyRule("encoder/conv2/{p}", "encoder.embedding.second.{p}"),
        *_ctranslate2_half("encoder", "encoder."),
        *_ctranslate2_half("decoder", ""),
    )


def _ctranslate2_half(side: str, ours: str) -> tuple[KeyRule, ...]:
    block, layer = f"{side}/layer_{{n}}", f"{ours}layers.{{n}}"
    own, cross, feed_forward = f"{layer}.attention", f"{layer}.cross", f"{layer}.feed_forward"
    look, across = f"{block}/self_attention", f"{block}/attention"
    norms = {f"{side}/layer_norm": f"{ours}norm", f"{look}/layer_norm": f"{own}.norm"}
    norms |= {f"{across}/layer_norm": f"{cross}.norm", f"{block}/ffn/layer_norm": f"{feed_forward}.norm"}
    return (
        KeyRule(f"{side}/position_encodings/encodings", f"{ours}embedding.positions.weight"),
        *_fused(f"{look}/linear_0", f"{own}.inner", ("query", "key", "value")),
        KeyRule(f"{look}/linear_1/{{p}}", f"{own}.inner.output.{{p}}"),
        KeyRule(f"{across}/linear_0/{{p}}", f"{cross}.inner.query.{{p}}"),
        *_fused(f"{across}/linear_1", f"{cross}.inner", ("key", "value")),
        KeyRule(f"{across}/linear_2/{{p}}", f"{cross}.inner.output.{{p}}"),
        KeyRule(f"{block}/ffn/linear_0/{{p}}", f"{feed_forward}.inner.up.{{p}}"),
        KeyRule(f"{block}/ffn/linear_1/{{p}}", f"{feed_forward}.inner.down.{{p}}"),
        *(KeyRule(f"{theirs}/gamma", f"{mine}.weight") for theirs, mine in norms.items()),
        *(KeyRule(f"{theirs}/beta", f"{mine}.bias") for theirs, mine in norms.items()),
    )


def _fused(published: str, ours: str, names: tuple[str, ...]) -> tuple[KeyRule, ...]:
    """Projections laid end to end, of which that of keys has no bias."""
    return tuple(
        KeyRule(f"{published}/{part}", f"{ours}.{name}.{part}", part=(number, number + 1, len(names)))
        for part in ("weight", "bias")
        for number, name in enumerate(names)
        if (name, part) != ("key", "bias")
    )


WHISPER = Family(
    "whisper",
    EncoderDecoder,
    configure,
    publish,
    rules,
    ctranslate2=CTranslate2Names("WhisperSpec", describe, special_token_ids, ctranslate2_rules),
    default_tokens={
        "decoder_start_token_id": 50257,
        **{f"{name}_token_id": 50256 for name in ("bos", "eos", "pad")},
        "begin_suppress_tokens": (220, 50256),
    },
)
