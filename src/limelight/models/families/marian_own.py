"""Marian's own files, of the small translators with a recurrent decoder that browsers have (arXiv:1804.00344)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from torch import nn

from ...formats.errors import CheckpointError
from ...formats.marian_files import MarianFile
from ...formats.rules import KeyRule, KeyRules, OneMore, SingleRow, Transposed, Unused
from ...nn import SSRU, Sinusoids, SplitHalves, SummedEmbedding
from ..config import Config, recipe
from . import marian
from .family import MarianNames
from .published import Published

# Settings with one supported value each: any other would be another architecture.
FIXED = {
    "type": "transformer",
    "transformer-decoder-autoreg": "rnn",
    "dec-cell": "ssru",
    "transformer-preprocess": "",
    "transformer-postprocess": "dan",
    "transformer-postprocess-emb": "d",
    "transformer-postprocess-top": "",
    "transformer-ffn-activation": "relu",
    "transformer-ffn-depth": "2",
    "transformer-train-position-embeddings": "false",
    "transformer-no-projection": "false",
    "transformer-tied-layers": "[]",
    "tied-embeddings-all": "true",
    "input-types": "[]",
    "lemma-dim-emb": "0",
    "output-omit-bias": "false",
}
NORM = recipe(nn.LayerNorm, eps=1e-6)  # Marian's, where transformers has 1e-5
LIMIT = 1000  # tokens; Marian's sinusoids have no limit, but its inputs are sentences


def configure(file: MarianFile) -> Config:
    """Our configuration of a Marian file: the embedding has one more row, of zeros: the decoder's start token."""
    for name, wanted in FIXED.items():
        value = file.settings.get(name, wanted)
        if value not in (wanted, "none" if wanted == "" else wanted):
            raise CheckpointError(f"{file.path} says {name} = {value!r}, and Limelight reads there {wanted!r}.")
    if "Wemb" not in file.keys() or len(file.shape("Wemb")) != 2:  # noqa: SIM118
        raise CheckpointError(f"{file.path} lacks Wemb, the embedding. Is it a Marian model?")
    rows, width = file.shape("Wemb")
    sizes = {
        "encoder_layers": "enc-depth",
        "decoder_layers": "dec-depth",
        **{f"{side}_attention_heads": "transformer-heads" for side in ("encoder", "decoder")},
        "encoder_ffn_dim": "transformer-dim-ffn",
        "decoder_ffn_dim": "transformer-dim-ffn",
    }
    values: dict[str, Any] = {ours: _whole(file.settings.get(theirs)) for ours, theirs in sizes.items()}
    values |= {"vocab_size": rows + 1, "d_model": width, "scale_embedding": True, "activation_function": "relu"}
    values |= {"max_position_embeddings": LIMIT, "dropout": 0.0}
    config = marian.configure(Published(file.path, values, tensors=frozenset(file.keys())))
    assert config.encoder is not None
    positions = recipe(Sinusoids, pairing=SplitHalves(), steps=width // 2 - 1)
    embedding = recipe(SummedEmbedding, **(dict(config.embedding.settings) | {"positions": positions}))
    shared: dict[str, Any] = {"norm": NORM, "embedding": embedding}
    return replace(config, attention=recipe(SSRU), encoder=replace(config.encoder, **shared), **shared)


def _whole(value: str | None) -> int | None:
    return int(value) if value is not None and value.isdecimal() and len(value) < 10 else None


def rules(config: Config) -> KeyRules:
    """Key rules between Marian's files, whose layers are counted from 1, and our modules."""
    assert config.encoder is not None
    change = Transposed()
    found: list[KeyRule | Unused] = [
        KeyRule("Wemb", "embedding.tokens.weight", OneMore(0.0)),
        KeyRule("decoder_ff_logit_out_b", "head.bias", OneMore(-math.inf)),
    ]
    for side, ours, layers in (("encoder", "encoder.", config.encoder.layers), ("decoder", "", config.layers)):
        for number in range(layers):
            block, layer = f"{side}_l{number + 1}", f"{ours}layers.{number}"
            found += _attention(
                f"{block}_self" if ours else f"{block}_context", f"{layer}.{'attention' if ours else 'cross'}"
            )
            found += _norm(f"{block}_ffn_ffn", f"{layer}.feed_forward.norm")
            for theirs, part in (("1", "up"), ("2", "down")):
                found.append(KeyRule(f"{block}_ffn_W{theirs}", f"{layer}.feed_forward.inner.{part}.weight", change))
                found.append(KeyRule(f"{block}_ffn_b{theirs}", f"{layer}.feed_forward.inner.{part}.bias", SingleRow()))
            if not ours:
                found += _norm(f"{block}_rnn_ffn", f"{layer}.attention.norm")
                found.append(KeyRule(f"{block}_rnn_W", f"{layer}.attention.inner.inner.weight", change))
                found.append(KeyRule(f"{block}_rnn_Wf", f"{layer}.attention.inner.forget.weight", change))
                found.append(KeyRule(f"{block}_rnn_bf", f"{layer}.attention.inner.forget.bias", SingleRow()))
    return KeyRules(*found, Unused("{any}_QuantMultA", "the scales of int8 activations, which are not quantized here"))


def _attention(published: str, ours: str) -> list[KeyRule | Unused]:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    found: list[KeyRule | Unused] = []
    for their, our in names.items():
        found.append(KeyRule(f"{published}_W{their}", f"{ours}.inner.{our}.weight", Transposed()))
        found.append(KeyRule(f"{published}_b{their}", f"{ours}.inner.{our}.bias", SingleRow()))
    return found + _norm(f"{published}_Wo", f"{ours}.norm")


def _norm(published: str, ours: str) -> list[KeyRule | Unused]:
    names = {"scale": "weight", "bias": "bias"}
    return [KeyRule(f"{published}_ln_{their}", f"{ours}.{our}", SingleRow()) for their, our in names.items()]


MARIAN = replace(marian.MARIAN, marian=MarianNames(configure, rules))
