"""Tiny runs of training: their settings, and the losses that they wrote."""

import csv
import json
import random

from limelight.distributed.failures import RankError
from limelight.tensors.shapes import ArgumentError
from limelight.training import read_settings
from limelight.training.loop import train

LLAMA = """
task = "language"
[model]
model_type = "llama"
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
tie_word_embeddings = true
"""
MIXTRAL = LLAMA.replace('"llama"', '"mixtral"') + "num_local_experts = 4\n"
T5 = """
task = "translation"
[model]
model_type = "t5"
d_model = 16
d_kv = 4
d_ff = 24
num_layers = 1
num_heads = 4
dropout_rate = 0.0
"""
RUN = """
[data]
train = "text.txt"
held_out = 0.2
separator = SEPARATOR
[tokenizer]
kind = "characters"
[learning]
schedule = "constant"
warmup = 2
[run]
steps = 6
batch_tokens = 64
max_length = 24
accumulation_steps = 1
evaluate_every = 2
save_every = 2
keep_checkpoints = 5
"""

#: What an error of settings is in several processes: itself on rank 0, which alone reports it.
IN_ALL = (ArgumentError, RankError)


def write_configs(folder):
    """The settings of a language model; of a mixture and a translator in folders beside it."""
    words = random.Random(0)
    lines = ["".join(words.choice("abcdefgh ") for _ in range(40)) for _ in range(40)]
    for name, model, text, separator in (
        ("llama", LLAMA, "\n\n".join(lines), "\n\n"),
        ("mixtral", MIXTRAL, "\n\n".join(lines), "\n\n"),
        ("t5", T5, "\n".join(f"{line[:12]}\t{line[11::-1]}" for line in lines), ""),
    ):
        (folder / name).mkdir()
        (folder / name / "text.txt").write_text(text)
        (folder / name / "tiny.toml").write_text(model + RUN.replace("SEPARATOR", json.dumps(separator)))
    return folder


def losses(output):
    """Step, loss, evaluation, rate and gradient of each step, as written."""
    return [row[:-1] for row in csv.reader((output / "losses.csv").read_text().splitlines())][1:]


def numbers(output):
    return [[float(cell or "nan") for cell in row] for row in losses(output)]


def run(config, output, *over, resume=False):
    return train(read_settings(config, over), output, resume=resume)
