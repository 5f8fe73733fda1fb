"""Small networks of many kinds, their losses, and the comparison of their gradients in several processes and one."""

from dataclasses import replace

import torch
from torch.distributed.tensor import DTensor
from torch.nn import functional

from limelight import Packed
from limelight.forms.scores import T5Buckets
from limelight.models.config import recipe
from limelight.models.decoder_only import DecoderOnly
from limelight.models.new import new
from limelight.nn import DistanceBias, LinearBias, MultiHead
from limelight.training import Objective
from limelight.training.data import Batch

TEXT = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 8}
GROUPED = TEXT | {"num_key_value_heads": 4, "max_position_embeddings": 64}
BART = {"vocab_size": 61, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}


def decoder(**changes):
    """A Llama whose attention or configuration has other settings."""
    config = new("llama", **GROUPED).config
    attention = changes.pop("attention", {})
    recipes = tuple(recipe(one.make, **{**dict(one.settings), **attention}) for one in config.attentions)
    return DecoderOnly(replace(config, attention=recipes, **changes))


MODELS = {
    "llama": lambda: new("llama", **GROUPED),
    "gpt2": lambda: new("gpt2", vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "bert": lambda: new("bert", **TEXT, max_position_embeddings=64),
    "albert": lambda: new("albert", **TEXT, embedding_size=16, max_position_embeddings=64),
    "t5": lambda: new("t5", **T5),
    "qwen3": lambda: new("qwen3", **GROUPED, head_dim=8),
    "gemma2": lambda: new("gemma2", **GROUPED, head_dim=8, query_pre_attn_scalar=8),
    "mixtral": lambda: new("mixtral", **GROUPED, num_local_experts=4),
    "experts": lambda: new("mixtral", **GROUPED, num_local_experts=24),
    "bart": lambda: new("bart", **BART),
    "alibi": lambda: decoder(scores=recipe(LinearBias)),
    "sinks": lambda: decoder(attention={"sink": True}),
    "distances": lambda: decoder(scores=recipe(DistanceBias, buckets=T5Buckets(8, 16))),
}  # fmt: skip


def made(name):
    """A model of `MODELS` without dropout; equal in every process."""
    torch.manual_seed(3)
    network = MODELS[name]()
    for part in network.modules():
        if isinstance(part, MultiHead):
            part.dropout = 0.0
            if part.sink is not None:
                torch.nn.init.normal_(part.sink)
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
    return network


def loss_of(network):
    """A loss of all outputs that a network has."""
    tokens = torch.arange(2 * 12).view(2, 12) * 7 % 61
    more = {"source": tokens.flip(1)} if hasattr(network, "encoder") else {}
    output = network(tokens, **more)
    loss = (output.states * torch.arange(32.0).sin()).square().mean()  # norms make sums of squares constant
    if output.logits is not None:
        loss = loss + functional.cross_entropy(output.logits.flatten(0, 1), tokens.roll(-1, 1).flatten())
    return loss


def batch_of(network, number=0):
    """A batch of two packed documents, or pairs."""
    tokens = (torch.arange(24)[None] + 5 * number) * 7 % 61
    batch = Batch(tokens, tokens.roll(-1, 1), Packed((10, 14)))
    if hasattr(network, "encoder"):
        batch = batch._replace(source=tokens.flip(1), source_layout=Packed((10, 14)))
    return batch


def objective_loss(network):
    """The loss of training, over packed documents, with label smoothing."""
    return Objective(network, label_smoothing=0.1).train()(batch_of(network)) / 24


def gradients(network):
    """The whole gradients, by name."""
    found = {name: parameter.grad for name, parameter in network.named_parameters()}
    return {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}


def worst_of(ours, theirs):
    """The largest relative difference of gradients, by norm, and its name.

    The gradient of a key's bias is 0 but for rounding: differences are relative to a thousandth of the whole at least.
    """
    least = 1e-3 * torch.stack([g.norm() for g in theirs.values() if g is not None]).norm()
    assert {name for name, g in ours.items() if g is None} == {name for name, g in theirs.items() if g is None}
    pairs = [(g, theirs[name], name) for name, g in ours.items() if g is not None]
    return max((((one - other).norm() / other.norm().clamp(min=least)).item(), name) for one, other, name in pairs)
