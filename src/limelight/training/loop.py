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
from torch import Tensor
from tqdm import tqdm

from ..checkpoints.load import load
from ..distributed.failures import failures_by_rank
from ..formats.interruption import stop_requested
from ..formats.safetensors_files import SINGLE
from ..pretrained import Pretrained
from ..tensors.shapes import wrong
from . import checkpoint, curve
from .checkpoint import Progress
from .data import Corpus
from .folder import LOSSES, check_output, locked
from .objective import Objective
from .optimizer import adamw, state_of
from .preparation import PreparedData, make_config, make_data, make_network
from .processes import Ranks, connect
from .resuming import check_same_run, restore_from, weights_of
from .schedule import learning_rate
from .settings import Settings
from .tokenizing import special_token_ids
from .translation import bleu, check_bleu, translate

AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}


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
    accumulation steps, up to rounding. ``run.shard``, ``run.context``, ``run.experts`` and ``run.tensor`` divide the
    model and its batches among them; such a run may be resumed with another number of processes if a step takes as many
    batches, with the same losses up to rounding.

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
        RankError: one of several processes failed or was killed; raised in all of them.
    """
    ranks = connect(settings.run)
    with failures_by_rank():
        check_output(output, resume)
        config = make_config(settings, settings.tokenizer.vocab_size, special_token_ids(task=settings.task))
        ranks.check(config)  # fails before any data is read
        if settings.run.bleu_samples:
            check_bleu()
        with locked(output) if ranks.main else nullcontext():
            return _Trainer(settings, output, ranks, log if ranks.main else lambda line: None).run()


class _Trainer:
    """A run: model, optimizer, data and progress."""

    def __init__(self, settings: Settings, output: Path, ranks: Ranks, log: Callable[[str], None]) -> None:
        self.settings, self.output, self.ranks, self.log = settings, output, ranks, log
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
            "processes": ranks.replicas,
        }
        torch.manual_seed(settings.run.seed)
        config = make_config(settings, data.tokenizer.size, data.special_token_ids)
        network = make_network(config, settings.task)
        self.model = Pretrained(str(output), network, output / SINGLE, (), data.tokenizer, data.special_token_ids)
        self.progress = Progress()
        state: dict[str, Tensor] = {}
        if last is not None:
            state, self.progress, metadata = checkpoint.read_checkpoint(last, *ranks.sharing)
            check_same_run(metadata, self.metadata, last, divided=ranks.divided)
            if not checkpoint.is_divided(last):
                network.load_state_dict(load(last).network.state_dict())
            self.log(f"Resuming from {last}.")
        network.to(ranks.device)
        self.objective = Objective(network, settings.learning.label_smoothing, AUTOCAST[settings.run.precision])
        summary = _summary(self.model, data, settings, ranks)
        ranks.divide(self.objective)
        learning = settings.learning
        self.optimizer = adamw(
            network,
            rate=learning.rate,
            weight_decay=learning.weight_decay,
            betas=learning.betas,
            epsilon=learning.epsilon,
        )
        if last is not None:
            restore_from(last, self.optimizer, network, state, divided=ranks.divided)
        self.wrapped, self.wrapped_optimizer = ranks.prepare(self.objective, self.optimizer)
        self.log(summary)

    def _prepare(self, last: Path | None) -> PreparedData:
        """Prepare the data; one process trains the tokenizer, the others read its file."""
        kept = self.output / "tokenizer.json"
        if self.ranks.main:
            checkpoint.prune(self.output, self.settings.run.keep_checkpoints)
            if last is None:
                data = make_data(self.settings)
                with checkpoint.replacing(kept) as part:
                    data.tokenizer.backend.save(str(part))
        self.ranks.wait()
        return data if self.ranks.main and last is None else make_data(self.settings, kept)

    def run(self) -> Trained:
        """Run the remaining steps."""
        losses = curve.LossLog(self.output / LOSSES, self.progress.step) if self.ranks.main else None
        try:
            return self._steps(losses)
        finally:
            if losses is not None:
                losses.close()

    def _steps(self, losses: curve.LossLog | None) -> Trained:
        steps, progress = self.settings.run.steps, self.progress
        loss, stopped = math.nan, "finished"
        bar = tqdm(
            total=steps,
            initial=progress.step,
            disable=None if self.ranks.main else True,
            unit="step",
            dynamic_ncols=True,
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
                if self.ranks.any(requested.is_set()):
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

    def _step(self, step: int) -> tuple[float, float, int, float]:
        """Make one optimizer step; return its loss, gradient norm, tokens and learning rate."""
        settings, train, ranks = self.settings, self.data.train, self.ranks
        parts = settings.run.accumulation_steps
        first = (step - 1) * parts * ranks.replicas
        total = sum(train.targets_of(first + number) for number in range(parts * ranks.replicas))
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
        summed = torch.zeros((), dtype=torch.float32, device=ranks.device)
        for part in range(parts):
            number = first + part * ranks.replicas + ranks.replica
            batch = ranks.own(train.batch(number)).to(ranks.device)
            torch.manual_seed(_seed(settings.run.seed, number))  # of dropout
            last = part == parts - 1
            with nullcontext() if last else ranks.accumulating(self.wrapped):
                loss = self.wrapped(batch)
                # gradients are averaged over ranks; the mean over all tokens is wanted
                ranks.backward(loss * (ranks.averaged / total))
            summed += loss.detach()
        norm = ranks.clip(self.objective, learning.clip or math.inf)
        self.wrapped_optimizer.step()
        self.wrapped_optimizer.zero_grad()
        mean = float(ranks.sum(summed)) / total
        if not math.isfinite(mean):
            raise wrong(
                "learning.rate",
                "must keep the loss finite",
                f"after {step - 1} steps it is {mean}",
                "Lower learning.rate, raise learning.warmup, or lower learning.clip; the last checkpoint is untouched.",
            )
        return mean, norm, total, now

    def _evaluate(self, bar: Any) -> float | None:
        """Return the loss on the held-out data, and save the model if it is the best so far."""
        progress, evaluation = self.progress, self.data.evaluation
        if evaluation is None:
            return None
        loss = evaluate(self.objective, evaluation, self.ranks)
        better = progress.best is None or loss < progress.best
        if better:
            progress.best, progress.best_step, progress.evaluations_since_best = loss, progress.step, 0
            self._publish()
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
        if not pairs or not self.ranks.main:
            return None
        sources, targets = zip(*pairs, strict=True)
        best = load(self.output).to(self.ranks.device)
        limit = 2 * run.max_length
        translations = translate(best, sources, max_tokens=min(limit, best.config.limit or limit))
        for source, target, ours in list(zip(sources, targets, translations, strict=True))[:3]:
            self.log(f"\n  {source}\n  is    {target}\n  here  {ours}")
        found = bleu(translations, targets)
        self.log(f"\nBLEU {found:.2f} on {len(pairs)} translations, greedy.")
        return found

    def _publish(self) -> None:
        """Write the best model."""
        whole = self.ranks.whole(self.model)
        if whole is not None:
            checkpoint.write_best(self.output, whole)

    def _save(self, losses: curve.LossLog | None) -> None:
        """Write a checkpoint, and the best model too where nothing is evaluated."""
        if losses is not None:
            losses.to_disk()
        if self.data.evaluation is None:
            self._publish()
        state = state_of(self.optimizer, self.model.network)
        if self.ranks.divided:
            state |= weights_of(self.model.network)
            checkpoint.write_divided(self.output, state, self.progress, self.metadata, self.ranks)
        elif self.ranks.main:
            checkpoint.write_checkpoint(self.output, self.model, state, self.progress, self.metadata)
        if losses is not None:
            checkpoint.prune(self.output, self.settings.run.keep_checkpoints)
            with checkpoint.replacing(self.output / "curve.svg") as part:
                part.write_text(curve.plot(losses.rows, str(self.output)), "utf-8")
        self.ranks.wait()


@torch.no_grad()
def evaluate(objective: Objective, corpus: Corpus, ranks: Ranks) -> float:
    """Return the mean loss over a corpus, in nats per token, without label smoothing; each process takes its share."""
    objective.eval()
    batches = corpus.in_order()
    summed = torch.zeros((), dtype=torch.float64, device=ranks.device)
    for first in range(0, len(batches), ranks.replicas):
        number = first + ranks.replica
        if number < len(batches):
            summed += objective(ranks.own(batches[number]).to(ranks.device))
        elif ranks.divided:  # a rank without a batch takes part in gathering parameters
            objective(ranks.own(batches[0]).to(ranks.device))
    return float(ranks.sum(summed)) / corpus.targets_in_order


def _seed(seed: int, number: int) -> int:
    """Return the seed of dropout for batch ``number`` of a run."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)


def _summary(model: Pretrained, data: PreparedData, settings: Settings, ranks: Ranks) -> str:
    count = sum(parameter.numel() for parameter in model.network.parameters())
    parts = settings.run.accumulation_steps * ranks.replicas
    held = "nothing is evaluated" if data.evaluation is None else f"{data.characters:,} characters are evaluated"
    return (
        f"{model.config.family}, {count:,} parameters, {data.tokenizer.size:,} tokens in the vocabulary; "
        f"{data.train.per_epoch:,} batches of {settings.run.batch_tokens:,} tokens make an epoch, "
        f"{parts} of them a step; {held}."
    )
