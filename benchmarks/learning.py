"""Compare training with transformers: the same Llama, with the same initial weights, data, steps and optimizer.

python benchmarks/learning.py [CONFIG] [--set key=value ...]      examples/austen.toml by default

Three runs: ours, transformers (sdpa, float32, the same pieces of documents as padded rows), and ours with another seed,
which shows how large a difference noise makes. The table gives the mean loss of the last tenth of the steps and the
bits per character of the evaluation text; benchmarks/results/learning.json has the same and every loss.
"""

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from accelerate import Accelerator
from torch.nn.utils.rnn import pad_sequence

import limelight
from limelight.pretrained import Pretrained
from limelight.training import Objective, adamw, learning_rate, read_settings
from limelight.training.loop import evaluate
from limelight.training.preparation import make_config, make_data, make_network


class Theirs(torch.nn.Module):
    """The summed loss of a model of transformers on one of our batches."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch):
        lengths = batch.layout.query_lengths
        rows = pad_sequence(
            batch.tokens[0].split(lengths), batch_first=True
        )  # the padding comes last, so causal attention never sees it
        targets = pad_sequence(batch.targets[0].split(lengths), batch_first=True, padding_value=-100)
        logits = self.model(input_ids=rows).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=Path(__file__).parent.parent / "examples/austen.toml")
    parser.add_argument("--set", action="append", default=[], dest="change")
    options = parser.parse_args()
    settings = read_settings(options.config, options.change)
    rows = {
        "ours": learn(settings, theirs=False),
        "transformers": learn(settings, theirs=True),
        "ours, another seed": learn(replace(settings, run=replace(settings.run, seed=settings.run.seed + 1))),
    }
    print(f"{'':20}{'loss, last tenth':>18}{'bits per character':>20}{'seconds':>10}")
    for name, row in rows.items():
        print(f"{name:20}{row['last_tenth']:>18.5f}{row['bits_per_character']:>20.5f}{row['seconds']:>10.1f}")
    about = {"torch": torch.__version__, "transformers": transformers.__version__, "settings": settings.as_json()}
    about["settings"]["data"] |= {"train": settings.data.train.name, "evaluation": settings.data.evaluation.name}
    path = Path(__file__).parent / "results" / "learning.json"
    values = {"format": "limelight.learning", "version": 1, **about, "runs": rows}
    path.write_text(json.dumps(values, indent=1) + "\n", "utf-8")


def learn(settings, theirs=False):
    """Train once; return the losses, and the bits per character of the evaluation text afterwards."""
    data = make_data(settings)
    torch.manual_seed(settings.run.seed)
    network = make_network(make_config(settings, data.tokenizer.size, data.special_token_ids), settings.task)
    model = Objective(network)
    if theirs:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            Pretrained("start", network, target, (), data.tokenizer, data.special_token_ids).save(target)
            loaded = transformers.AutoModelForCausalLM.from_pretrained(
                target, dtype=torch.float32, attn_implementation="sdpa"
            )
            model = Theirs(loaded.train())
    learning, steps = settings.learning, settings.run.steps
    optimizer = adamw(
        model,
        rate=learning.rate,
        weight_decay=learning.weight_decay,
        betas=learning.betas,
        epsilon=learning.epsilon,
    )
    losses = []
    begin = time.perf_counter()
    for step in range(1, steps + 1):
        batch = data.train.batch(step - 1)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, schedule=learning.schedule, peak=learning.rate, warmup=learning.warmup, steps=steps,
                min_ratio=learning.min_rate_ratio,
            )  # fmt: skip
        loss = model(batch) / settings.run.batch_tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), learning.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - begin
    nats = evaluate(model, data.evaluation, Accelerator())
    return {
        "losses": losses,
        "last_tenth": sum(losses[-max(1, steps // 10) :]) / max(1, steps // 10),
        "bits_per_character": nats * data.evaluation.targets_in_order / math.log(2) / data.characters,
        "seconds": seconds,
        "limelight": limelight.__version__,
    }


if __name__ == "__main__":
    main()
