"""The loop: read, learn, look, save; stopped at any moment, it goes on as if it had not been."""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from filelock import FileLock, Timeout
from torch import Tensor
from tqdm import tqdm

import limelight

from ..formats.safetensors_files import SINGLE
from ..pretrained import Pretrained
from ..tensors.shapes import wrong
from . import checkpoint, curve
from .checkpoint import Progress
from .data import Corpus
from .making import Made, make_config, make_data, make_network
from .objective import Objective
from .optimizer import adamw, restore, state_of
from .schedule import rate
from .settings import Settings, differences
from .tokenizing import marks_of
from .translation import bleu, check_bleu, translate

LOSSES = "losses.csv"
PRODUCTS = {"float32": None, "bfloat16": torch.bfloat16}
# What may be changed between two parts of a run: how long it is and what is kept, not what it computes.
FREE = ("run.steps", "run.evaluate_every", "run.save_every", "run.keep", "run.patience", "run.translate")


@dataclass(frozen=True)
class Trained:
    """What came of a run.

    Args:
        output: its folder; `limelight.load` reads the best model from it.
        steps: made in all.
        loss: of the last step, in nats per token.
        evaluation: the lowest loss of an evaluation, in nats per token; ``None`` where there was none.
        bits_per_character: the same, in bits per character of the evaluated text.
        best_step: the step after which it was measured.
        bleu: of the best model's translations of held-out sources; ``None`` where none were wanted.
        stopped: ``"finished"``, ``"patience"`` (nothing grew better) or ``"interrupted"``.
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
    settings: Settings, output: Path, *, resume: bool = False, say: Callable[[str], None] = lambda words: None
) -> Trained:
    """Train a model from nothing.

    Batches, dropout and rates are pure functions of the seed and the step, so a run that was killed and resumed gives
    the losses of one that was not, bit for bit, on the same machine with as many threads and processes. Several
    processes (started by ``torchrun``; each has an accelerator of its own, or all compute on CPUs) read different
    batches and learn from the mean over the tokens of all: ``n`` processes make the steps of one process that
    accumulates over ``n`` batches, but for rounding.

    Args:
        settings: see `limelight.training.settings`.
        output: a folder for what it leaves (`limelight.training.checkpoint`).
        resume: go on from the newest checkpoint in ``output``, or begin again where a run stopped before its first.
        say: told what happens, line by line.

    Raises:
        ArgumentError: settings, data and model that do not fit; an ``output`` that holds another run, or none where
            one shall be resumed; one that another run is writing; processes that do not see each other.
    """
    accelerator = _accelerator()
    main = accelerator.is_main_process
    _check_output(output, resume)
    make_config(settings, settings.tokenizer.size, marks_of(task=settings.task))  # complains before anything is read
    if settings.run.translate:
        check_bleu()
    with _folder(output) if main else nullcontext():
        return _Run(settings, output, accelerator, say if main else lambda words: None).run()


def _accelerator() -> Accelerator:
    """The devices of all processes.

    Raises:
        ArgumentError: more processes were started than train together, or more than there are accelerators.
    """
    names = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # torchrun's, and MPI's
    sizes = {name: os.environ[name] for name in names if os.environ.get(name, "").isdecimal()}
    processes, here = max(map(int, sizes.values()), default=1), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    # Accelerate looks for processes on CPUs only where it is told to. Apple's GPU serves a single process.
    device = torch.accelerator.current_accelerator(check_available=True)
    on_cpus = processes > 1 and (device is None or device.type == "mps" or parse_flag_from_env("ACCELERATE_USE_CPU"))
    if processes > 1 and not on_cpus and here > torch.accelerator.device_count():
        got = f"there are {torch.accelerator.device_count()} for {here} processes"
        way_out = "Start fewer processes, or set ACCELERATE_USE_CPU=true to train on CPUs."
        raise wrong("--nproc_per_node", "must leave each process an accelerator of its own", got, way_out)
    alone = "WORLD_SIZE" in sizes and "RANK" not in os.environ  # its peers, if any, could not be found
    accelerator = None if alone and processes > 1 else Accelerator(cpu=on_cpus)
    together = 1 if accelerator is None else accelerator.num_processes
    if accelerator is None or together != processes:
        named = ", ".join(f"{name}={size}" for name, size in sizes.items())
        way_out = "Unset it to train in one process, or start all with torchrun --nproc_per_node N."
        raise wrong(named, "says how many processes train together", f"this one sees {together}", way_out)
    return accelerator


def _check_output(output: Path, resume: bool) -> None:
    """Raise unless a run may begin in a folder, or go on there.

    Raises:
        ArgumentError: another run or model in the folder; nothing to resume.
    """
    last, begun = checkpoint.newest(output), (output / LOSSES).is_file()
    if resume and last is None and not begun:
        way_out = "Check --output, or leave out --resume to begin a run there."
        raise wrong("--resume", "needs a run to go on with", f"{output} holds none", way_out)
    if not resume and last is not None:
        raise wrong("--output", "must hold no run yet", f"{last} is there", "--resume goes on from it.")
    if not resume and not begun and (output / SINGLE).exists():
        raise wrong("--output", "must hold no other model", f"{output / SINGLE} is there", "Name another folder.")


@contextmanager
def _folder(output: Path) -> Iterator[None]:
    """The folder of a run, for this process alone; a run that fails before its first step leaves none.

    Raises:
        ArgumentError: another run is writing there.
    """
    made = [folder for folder in (output, *output.parents) if not folder.exists()]
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        got = f"another one is writing {output}"
        raise wrong("--output", "must belong to one run at a time", got, "Wait for it, or name another.") from None
    try:
        yield
    except BaseException:
        if made and not _has_stepped(output):
            shutil.rmtree(output)
            for folder in made[1:]:
                folder.rmdir()
        raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _has_stepped(output: Path) -> bool:
    """Whether the losses of a run have a row below their header."""
    losses = output / LOSSES
    return losses.is_file() and losses.read_text("utf-8").count("\n") > 1


class _Run:
    """One run: what it holds from step to step."""

    def __init__(self, settings: Settings, output: Path, accelerator: Accelerator, say: Callable[[str], None]) -> None:
        self.settings, self.output, self.accelerator, self.say = settings, output, accelerator, say
        self.main = accelerator.is_main_process
        last = checkpoint.newest(output)
        if last is None and (output / LOSSES).is_file():
            self.say(f"{output} has no checkpoint yet: beginning again.")
        made = self._data(last)
        self.made = made
        self.about = {
            "limelight.training": 1,
            "settings": settings.as_json(),
            "train": made.train.fingerprint,
            "evaluation": None if made.evaluation is None else made.evaluation.fingerprint,
            "processes": self.accelerator.num_processes,
        }
        torch.manual_seed(settings.run.seed)
        config = make_config(settings, made.tokenizer.size, made.marks)
        network = make_network(config, settings.task)
        self.model = Pretrained(str(output), network, output / SINGLE, (), made.tokenizer, made.marks)
        self.progress = Progress()
        state: dict[str, Tensor] = {}
        if last is not None:
            state, self.progress, about = checkpoint.read_checkpoint(last)
            self._compare(about, last)
            network.load_state_dict(limelight.load(last).network.state_dict())
            self.say(f"Going on from {last}.")
        network.to(self.accelerator.device)
        self.objective = Objective(network, settings.learning.smoothing, PRODUCTS[settings.run.precision])
        learning = settings.learning
        optimizer = adamw(
            network, rate=learning.rate, decay=learning.decay, betas=learning.betas, epsilon=learning.epsilon
        )
        if last is not None:
            restore(optimizer, network, state)
        self.optimizer = optimizer
        self.wrapped, self.stepper = self.accelerator.prepare(self.objective, optimizer)
        self.say(_summary(self.model, made, settings, self.accelerator))

    def _data(self, last: Path | None) -> Made:
        """The data; one process trains the tokenizer, the others read its file."""
        kept = self.output / "tokenizer.json"
        if self.main:
            checkpoint.forget(self.output, self.settings.run.keep)
            if last is None:
                made = make_data(self.settings)
                with checkpoint.replacing(kept) as part:
                    made.tokenizer.backend.save(str(part))
        self.accelerator.wait_for_everyone()
        return made if self.main and last is None else make_data(self.settings, kept)

    def _compare(self, about: dict[str, Any], last: Path) -> None:
        """Raise unless a checkpoint is of this run."""
        found = [key for key in differences(about, self.about) if key.removeprefix("settings.") not in FREE]
        if found:
            names = ", ".join(key.removeprefix("settings.") for key in found)
            way_out = f"Name another --output, or correct them; {', '.join(FREE)} may change."
            raise wrong("--resume", "must go on with the same settings and data", f"{last} has other {names}", way_out)

    def run(self) -> Trained:
        """All steps that are left."""
        losses = curve.Losses(self.output / LOSSES, self.progress.step) if self.main else None
        try:
            return self._steps(losses)
        finally:
            if losses is not None:
                losses.close()

    def _steps(self, losses: curve.Losses | None) -> Trained:
        steps, progress = self.settings.run.steps, self.progress
        loss, stopped = math.nan, "finished"
        bar = tqdm(
            total=steps, initial=progress.step, disable=None if self.main else True, unit="step", dynamic_ncols=True
        )
        with bar, _asked_to_stop() as asked:
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
                    losses.add(curve.Row(progress.step, loss, evaluated, now, norm, seconds))
                patience = self.settings.run.patience
                if patience and progress.worse >= patience:
                    stopped = "patience"
                if self._any(asked.is_set()):
                    stopped = "interrupted"
                whole = progress.step % self.settings.run.save_every == 0 or progress.step == steps
                if whole or stopped != "finished":
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
        """Learn once: loss, norm of the gradient, tokens, learning rate."""
        settings, train, processes = self.settings, self.made.train, self.accelerator.num_processes
        parts = settings.run.accumulation
        first = (step - 1) * parts * processes
        total = sum(train.targets_of(first + number) for number in range(parts * processes))
        learning = settings.learning
        now = rate(
            step,
            shape=learning.schedule,
            highest=learning.rate,
            warmup=learning.warmup,
            steps=settings.run.steps,
            floor=learning.floor,
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
                # gradients are averaged over processes, and should be over all tokens
                self.accelerator.backward(loss * (processes / total))
            summed += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), learning.clip or math.inf)
        self.stepper.step()
        self.stepper.zero_grad()
        mean = float(self.accelerator.reduce(summed, "sum")) / total
        if not math.isfinite(mean):
            raise wrong(
                "learning.rate",
                "must keep the loss finite",
                f"after {step - 1} steps it is {mean}",
                "Lower it, lengthen the warm-up, or lower learning.clip; the last checkpoint is untouched.",
            )
        return mean, float(norm), total, now

    def _evaluate(self, bar: Any) -> float | None:
        """The loss on what is not learned from; the best model is kept."""
        progress, evaluation = self.progress, self.made.evaluation
        if evaluation is None:
            return None
        found = evaluate(self.objective, evaluation, self.accelerator)
        better = progress.best is None or found < progress.best
        if better:
            progress.best, progress.best_step, progress.worse = found, progress.step, 0
            if self.main:
                checkpoint.write_best(self.output, self.model)
        else:
            progress.worse += 1
        bits = self._bits(found)
        words = f"step {progress.step}: evaluation {found:.4f} nats per token"
        bar.clear()
        self.say(
            words + ("" if bits is None else f", {bits:.4f} bits per character") + (", the best" if better else "")
        )
        return found

    def _bits(self, nats: float | None) -> float | None:
        """Nats per token as bits per character."""
        if nats is None or self.made.evaluation is None or not self.made.characters:
            return None
        return nats * self.made.evaluation.targets_in_order / math.log(2) / self.made.characters

    def _bleu(self) -> float | None:
        """BLEU of the best model on sources that were held out, and a few translations to look at."""
        run = self.settings.run
        pairs = self.made.evaluated[:: max(1, len(self.made.evaluated) // run.translate)] if run.translate else []
        pairs = pairs[: run.translate]
        if not pairs or not self.main:
            return None
        sources, targets = zip(*pairs, strict=True)
        best = limelight.load(self.output).to(self.accelerator.device)
        written = translate(best, sources, longest=min(2 * run.length, best.config.limit or 2 * run.length))
        for source, target, ours in list(zip(sources, targets, written, strict=True))[:3]:
            self.say(f"\n  {source}\n  is    {target}\n  here  {ours}")
        found = bleu(written, targets)
        self.say(f"\nBLEU {found:.2f} on {len(pairs)} translations, greedy.")
        return found

    def _save(self, losses: curve.Losses | None) -> None:
        """A checkpoint; without evaluations, the newest model is the best."""
        if losses is not None:
            losses.to_disk()
            if self.made.evaluation is None:
                checkpoint.write_best(self.output, self.model)
            state = state_of(self.optimizer, self.model.network)
            checkpoint.write_checkpoint(self.output, self.model, state, self.progress, self.about)
            checkpoint.forget(self.output, self.settings.run.keep)
            with checkpoint.replacing(self.output / "curve.svg") as part:
                part.write_text(curve.picture(losses.rows, str(self.output)), "utf-8")
        self.accelerator.wait_for_everyone()


@torch.no_grad()
def evaluate(objective: Objective, corpus: Corpus, accelerator: Accelerator) -> float:
    """The mean loss over all of a corpus, in nats per token, without smoothing; each process takes its share."""
    objective.eval()
    batches = corpus.in_order()
    summed = torch.zeros((), dtype=torch.float64, device=accelerator.device)
    for batch in batches[accelerator.process_index :: accelerator.num_processes]:
        summed += objective(batch.to(accelerator.device))
    return float(accelerator.reduce(summed, "sum")) / corpus.targets_in_order


def _seed(seed: int, number: int) -> int:
    """A seed for each reading of a run."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """Ctrl-C and termination set an event, to be heeded after the step; a second one stops at once.

    Under torchrun one Ctrl-C arrives twice, from the terminal and from torchrun: within a second it counts once.
    """
    asked = threading.Event()
    first = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heard(number: int, frame: object) -> None:
        nonlocal first
        if not asked.is_set():
            first = time.monotonic()
            asked.set()
        elif time.monotonic() - first > 1:
            signal.signal(number, before[signal.Signals(number)])
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, heard)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _summary(model: Pretrained, made: Made, settings: Settings, accelerator: Accelerator) -> str:
    count = sum(parameter.numel() for parameter in model.network.parameters())
    parts = settings.run.accumulation * accelerator.num_processes
    held = "nothing is evaluated" if made.evaluation is None else f"{made.characters:,} characters are evaluated"
    return (
        f"{model.config.family}, {count:,} parameters, {made.tokenizer.size:,} tokens in the vocabulary; "
        f"{made.train.per_epoch:,} batches of {settings.run.tokens:,} tokens make an epoch, {parts} of them a step; "
        f"{held}."
    )
