"""The training loop: step, evaluate, save. A run that is killed at any moment resumes with the same bits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..checkpoints.load import load
from ..formats.interruption import stop_requested
from ..formats.safetensors_files import SINGLE
from ..pretrained import Pretrained
from ..tensors.shapes import wrong
from . import checkpoint, curve
from .checkpoint import Progress
from .data import Corpus
from .folder import LOSSES, check_output, locked
from .objective import Objective
from .optimizer import adamw, restore, state_of
from .preparation import PreparedData, make_config, make_data, make_network
from .processes import make_accelerator
from .schedule import learning_rate
from .settings import Settings, differences
from .tokenizing import special_token_ids
from .translation import bleu, check_bleu, translate

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}
# Settings that may change when a run is resumed: its length and what is kept, not what it computes.
CHANGEABLE = tuple(
    f"run.{key}" for key in ("steps", "evaluate_every", "save_every", "keep_checkpoints", "patience", "bleu_samples")
)


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Args:
        output: the folder of the run; `limelight.load` reads the best model from it.
        steps: number of completed steps.
        loss: loss of the last step, in nats per token.
        evaluation: lowest evaluation loss, in nats per token; ``None`` without evaluations.
        bits_per_character: the same, in bits per character of the held-out text.
        best_step: the step after which it was measured.
        bleu: BLEU of the best model on held-out sources; ``None`` where it was not measured.
        stopped: ``"finished"``, ``"patience"`` (no improvement, see `RunSettings`) or ``"interrupted"``.
    """

    output: Path
    steps: int
    loss: float
    evaluation: float | None
    bits_per_character: float | None
    best_step: int
    bleu: float | None
    stopped: str


def train(
    settings: Settings, output: Path, *, resume: bool = False, log: Callable[[str], None] = lambda line: None
) -> Trained:
    """Train a model from scratch.

    Batches, dropout and learning rates are pure functions of the seed and the step, so a run that was killed and
    resumed has the losses of one that was not, bit for bit, on the same machine with as many threads and processes.
    Several processes (started by ``torchrun``; each with its own accelerator, or all on CPUs) take different batches
    and average gradients over the tokens of all: ``n`` processes make the steps of one process with ``n`` gradient
    accumulation steps, up to rounding.

    Args:
        settings: see `limelight.training.settings`.
        output: folder of the run; its files are listed in `limelight.training.checkpoint`.
        resume: resume from the newest checkpoint in ``output``, or start again where a run has none yet.
        log: called with each line of progress.

    Returns:
        The losses of the last and of the best step, and why the run ended.

    Raises:
        ArgumentError: settings, data and model do not fit; ``output`` holds another run, or none to resume, or is being
            written by another run; processes do not find each other.
    """
    accelerator = make_accelerator()
    main = accelerator.is_main_process
    check_output(output, resume)
    make_config(
        settings, settings.tokenizer.vocab_size, special_token_ids(task=settings.task)
    )  # fails before any data is read
    if settings.run.bleu_samples:
        check_bleu()
    with locked(output) if main else nullcontext():
        return _Trainer(settings, output, accelerator, log if main else lambda line: None).run()


class _Trainer:
    """A run: model, optimizer, data and progress."""

    def __init__(self, settings: Settings, output: Path, accelerator: Accelerator, log: Callable[[str], None]) -> None:
        self.settings, self.output, self.accelerator, self.log = settings, output, accelerator, log
        self.main = accelerator.is_main_process
        last = checkpoint.newest(output)
        if last is None and (output / LOSSES).is_file():
            self.log(f"{output} has no checkpoint yet: starting again.")
        data = self.data = self._prepare(last)
        self.metadata = {
            "format": "limelight.training",
            "version": 1,
            "settings": settings.as_json(),
            "train": data.train.fingerprint,
            "evaluation": None if data.evaluation is None else data.evaluation.fingerprint,
            "processes": self.accelerator.num_processes,
        }
        torch.manual_seed(settings.run.seed)
        config = make_config(settings, data.tokenizer.size, data.special_token_ids)
        network = make_network(config, settings.task)
        self.model = Pretrained(str(output), network, output / SINGLE, (), data.tokenizer, data.special_token_ids)
        self.progress = Progress()
        state: dict[str, Tensor] = {}
        if last is not None:
            state, self.progress, metadata = checkpoint.read_checkpoint(last)
            self._compare(metadata, last)
            network.load_state_dict(load(last).network.state_dict())
            self.log(f"Resuming from {last}.")
        network.to(self.accelerator.device)
        self.objective = Objective(network, settings.learning.label_smoothing, AUTOCAST[settings.run.precision])
        learning = settings.learning
        optimizer = adamw(
            network,
            rate=learning.rate,
            weight_decay=learning.weight_decay,
            betas=learning.betas,
            epsilon=learning.epsilon,
        )
        if last is not None:
            restore(optimizer, network, state)
        self.optimizer = optimizer
        self.wrapped, self.wrapped_optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.log(_summary(self.model, data, settings, self.accelerator))

    def _prepare(self, last: Path | None) -> PreparedData:
        """Prepare the data; one process trains the tokenizer, the others read its file."""
        kept = self.output / "tokenizer.json"
        if self.main:
            checkpoint.prune(self.output, self.settings.run.keep_checkpoints)
            if last is None:
                data = make_data(self.settings)
                with checkpoint.replacing(kept) as part:
                    data.tokenizer.backend.save(str(part))
        self.accelerator.wait_for_everyone()
        return data if self.main and last is None else make_data(self.settings, kept)

    def _compare(self, metadata: dict[str, Any], last: Path) -> None:
        """Check that a checkpoint belongs to this run."""
        found = [key for key in differences(metadata, self.metadata) if key.removeprefix("settings.") not in CHANGEABLE]
        if found:
            names = ", ".join(key.removeprefix("settings.") for key in found)
            way_out = f"Name another --output, or correct them; {', '.join(CHANGEABLE)} may change."
            raise wrong(
                "--resume",
                "must keep the settings and data of the run",
                f"{last} was written with other {names}",
                way_out,
            )

    def run(self) -> Trained:
        """Run the remaining steps."""
        losses = curve.LossLog(self.output / LOSSES, self.progress.step) if self.main else None
        try:
            return self._steps(losses)
        finally:
            if losses is not None:
                losses.close()

    def _steps(self, losses: curve.LossLog | None) -> Trained:
        steps, progress = self.settings.run.steps, self.progress
        loss, stopped = math.nan, "finished"
        bar = tqdm(
            total=steps, initial=progress.step, disable=None if self.main else True, unit="step", dynamic_ncols=True
        )
        with bar, stop_requested() as requested:
            speed = None
            while progress.step < steps and stopped == "finished":
                begin = time.perf_counter()
                progress.step += 1
                loss, norm, tokens, now = self._step(progress.step)
                seconds = time.perf_counter() - begin
                speed = tokens / seconds if speed is None else 0.9 * speed + 0.1 * tokens / seconds
                bar.update()
                bar.set_postfix_str(f"loss {loss:.4f}, {speed:,.0f} tokens/s", refresh=False)
                evaluated = None
                if progress.step % self.settings.run.evaluate_every == 0 or progress.step == steps:
                    evaluated = self._evaluate(bar)
                if losses is not None:
                    losses.add(curve.StepRecord(progress.step, loss, evaluated, now, norm, seconds))
                patience = self.settings.run.patience
                if patience and progress.evaluations_since_best >= patience:
                    stopped = "patience"
                if self._any(requested.is_set()):
                    stopped = "interrupted"
                due = progress.step % self.settings.run.save_every == 0 or progress.step == steps
                if due or stopped != "finished":
                    self._save(losses)
        return Trained(
            self.output,
            progress.step,
            loss,
            progress.best,
            self._bits(progress.best),
            progress.best_step,
            self._bleu() if stopped != "interrupted" else None,
            stopped,
        )

    def _any(self, flag: bool) -> bool:
        """Whether the flag is set in any process: a signal may reach some of them a step later than others."""
        return bool(self.accelerator.reduce(torch.tensor(flag, device=self.accelerator.device).int(), "sum"))

    def _step(self, step: int) -> tuple[float, float, int, float]:
        """Make one optimizer step; return its loss, gradient norm, tokens and learning rate."""
        settings, train, processes = self.settings, self.data.train, self.accelerator.num_processes
        parts = settings.run.accumulation_steps
        first = (step - 1) * parts * processes
        total = sum(train.targets_of(first + number) for number in range(parts * processes))
        learning = settings.learning
        now = learning_rate(
            step,
            schedule=learning.schedule,
            peak=learning.rate,
            warmup=learning.warmup,
            steps=settings.run.steps,
            min_ratio=learning.min_rate_ratio,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = now
        self.wrapped.train()
        summed = torch.zeros((), dtype=torch.float32, device=self.accelerator.device)
        for part in range(parts):
            number = first + part * processes + self.accelerator.process_index
            batch = train.batch(number).to(self.accelerator.device)
            torch.manual_seed(_seed(settings.run.seed, number))  # of dropout
            last = part == parts - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss = self.wrapped(batch)
                # DDP averages gradients over processes; the mean over all tokens is wanted
                self.accelerator.backward(loss * (processes / total))
            summed += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), learning.clip or math.inf)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        mean = float(self.accelerator.reduce(summed, "sum")) / total
        if not math.isfinite(mean):
            raise wrong(
                "learning.rate",
                "must keep the loss finite",
                f"after {step - 1} steps it is {mean}",
                "Lower learning.rate, raise learning.warmup, or lower learning.clip; the last checkpoint is untouched.",
            )
        return mean, float(norm), total, now

    def _evaluate(self, bar: Any) -> float | None:
        """Return the loss on the held-out data, and save the model if it is the best so far."""
        progress, evaluation = self.progress, self.data.evaluation
        if evaluation is None:
            return None
        loss = evaluate(self.objective, evaluation, self.accelerator)
        better = progress.best is None or loss < progress.best
        if better:
            progress.best, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
            if self.main:
                checkpoint.write_best(self.output, self.model)
        else:
            progress.evaluations_since_best += 1
        bits = self._bits(loss)
        line = f"step {progress.step}: evaluation {loss:.4f} nats per token"
        bar.clear()
        self.log(line + ("" if bits is None else f", {bits:.4f} bits per character") + (", the best" if better else ""))
        return loss

    def _bits(self, nats: float | None) -> float | None:
        """Convert nats per token to bits per character."""
        if nats is None or self.data.evaluation is None or not self.data.characters:
            return None
        return nats * self.data.evaluation.targets_in_order / math.log(2) / self.data.characters

    def _bleu(self) -> float | None:
        """Return BLEU of the best model on held-out sources, and log a few of its translations."""
        run = self.settings.run
        held_out = self.data.held_out
        step = max(1, len(held_out) // run.bleu_samples) if run.bleu_samples else 1
        pairs = held_out[::step][: run.bleu_samples]
        if not pairs or not self.main:
            return None
        sources, targets = zip(*pairs, strict=True)
        best = load(self.output).to(self.accelerator.device)
        limit = 2 * run.max_length
        translations = translate(best, sources, max_tokens=min(limit, best.config.limit or limit))
        for source, target, ours in list(zip(sources, targets, translations, strict=True))[:3]:
            self.log(f"\n  {source}\n  is    {target}\n  here  {ours}")
        found = bleu(translations, targets)
        self.log(f"\nBLEU {found:.2f} on {len(pairs)} translations, greedy.")
        return found

    def _save(self, losses: curve.LossLog | None) -> None:
        """Write a checkpoint, and the best model too where nothing is evaluated."""
        if losses is not None:
            losses.to_disk()
            if self.data.evaluation is None:
                checkpoint.write_best(self.output, self.model)
            state = state_of(self.optimizer, self.model.network)
            checkpoint.write_checkpoint(self.output, self.model, state, self.progress, self.metadata)
            checkpoint.prune(self.output, self.settings.run.keep_checkpoints)
            with checkpoint.replacing(self.output / "curve.svg") as part:
                part.write_text(curve.plot(losses.rows, str(self.output)), "utf-8")
        self.accelerator.wait_for_everyone()


@torch.no_grad()
def evaluate(objective: Objective, corpus: Corpus, accelerator: Accelerator) -> float:
    """Return the mean loss over a corpus, in nats per token, without label smoothing; each process takes its share."""
    objective.eval()
    batches = corpus.in_order()
    summed = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        summed += objective(batch.to(accelerator.device))
    return float(accelerator.reduce(summed, "sum")) / corpus.targets_in_order


def _seed(seed: int, number: int) -> int:
    """Return the seed of dropout for batch ``number`` of a run."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)


def _summary(model: Pretrained, data: PreparedData, settings: Settings, accelerator: Accelerator) -> str:
    count = sum(parameter.numel() for parameter in model.network.parameters())
    parts = settings.run.accumulation_steps * accelerator.num_processes
    held = "nothing is evaluated" if data.evaluation is None else f"{data.characters:,} characters are evaluated"
    return (
        f"{model.config.family}, {count:,} parameters, {data.tokenizer.size:,} tokens in the vocabulary; "
        f"{data.train.per_epoch:,} batches of {settings.run.batch_tokens:,} tokens make an epoch, "
        f"{parts} of them a step; {held}."
    )
