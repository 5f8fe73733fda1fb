"""Marian's translator in plain matrices: no layers, no batches, no caches, one sentence."""

import math

import torch
from torch.nn import functional


class Oracle:
    def __init__(self, tensors):
        self.tensors = {name: values.double() for name, values in tensors.items()}
        self.table = self.tensors["Wemb"]
        self.tensors["table"] = self.table.T
        self.width = self.table.shape[1]

    def norm(self, x, name):
        scale, bias = (self.tensors[f"{name}_ln_{part}"][0] for part in ("scale", "bias"))
        return functional.layer_norm(x, (self.width,), scale, bias, 1e-6)

    def waves(self, count):
        steps = torch.exp(-math.log(10_000) / (self.width / 2 - 1) * torch.arange(self.width // 2).double())
        angles = torch.arange(count).double()[:, None] * steps
        return torch.cat((angles.sin(), angles.cos()), -1)

    def linear(self, x, weight, bias):
        return x @ self.tensors[weight] + self.tensors[bias]

    def look(self, name, x, y):
        query, key, value = (
            self.linear(z, f"{name}_W{p}", f"{name}_b{p}").view(len(z), 8, -1).transpose(0, 1)
            for z, p in ((x, "q"), (y, "k"), (y, "v"))
        )
        weights = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]), -1)
        mixed = (weights @ value).transpose(0, 1).reshape(len(x), -1)
        return self.norm(x + self.linear(mixed, f"{name}_Wo", f"{name}_bo"), f"{name}_Wo")

    def think(self, name, x):
        inner = torch.relu(self.linear(x, f"{name}_W1", f"{name}_b1"))
        return self.norm(x + self.linear(inner, f"{name}_W2", f"{name}_b2"), f"{name}_ffn")

    def encode(self, ids):
        x = self.table[ids] * math.sqrt(self.width) + self.waves(len(ids))
        for n in range(1, 7):
            x = self.think(f"encoder_l{n}_ffn", self.look(f"encoder_l{n}_self", x, x))
        return x

    def logits(self, written, source):
        """Of the token after each of ``written``, and of the first."""
        before = torch.cat((torch.zeros(1, self.width).double(), self.table[written]))
        y = before * math.sqrt(self.width) + self.waves(len(before))
        for n in (1, 2):
            keep = torch.sigmoid(self.linear(y, f"decoder_l{n}_rnn_Wf", f"decoder_l{n}_rnn_bf"))
            new, carried, found = (1 - keep) * (y @ self.tensors[f"decoder_l{n}_rnn_W"]), 0, []
            for k, x in zip(keep, new, strict=True):
                carried = k * carried + x
                found.append(torch.relu(carried))
            y = self.norm(y + torch.stack(found), f"decoder_l{n}_rnn_ffn")
            y = self.think(f"decoder_l{n}_ffn", self.look(f"decoder_l{n}_context", y, source))
        return self.linear(y, "table", "decoder_ff_logit_out_b")
