"""A small random network of our own as a subject, in float64."""

import torch

from limelight import models
from limelight.microscope.subjects import Run
from support.made_up_subject import MadeUp

GPT2 = {"vocab_size": 500, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 64}
BERT = {
    "vocab_size": 500,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}


class Tiny(MadeUp):
    """Reads as `MadeUp` does; its weights are random and large, so that heads differ."""

    name = "tiny"

    def __init__(self, causal=True):
        super().__init__(None, causal=causal, layers=2, heads=3, width=24)
        torch.manual_seed(0)
        self.network = models.new("gpt2", **GPT2) if causal else models.new("bert", **BERT)
        self.network = self.network.double().eval().requires_grad_(False)
        for parameter in self.network.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
        self.attention_names = self.network.attention_names
        self.limit = 64

    def run(self, ids, *, lengths=None, source=None, hidden=False, logits=False):
        output = self.network(ids, hidden=hidden, logits=logits)
        return Run(output.hidden or (), output.logits)

    def lens(self, states, depth):
        return self.network.head_on(states) if self.causal else None

    def layer(self, name):
        """The attention layer of this name."""
        return next(module for module in self.network.modules() if getattr(module, "name", None) == name)

    def output_weight(self, name):
        layer = self.layer(name)
        weight = layer.output.weight  # (width, H * Dv)
        return weight.T.reshape(self.heads, layer.value_width, weight.shape[0])
