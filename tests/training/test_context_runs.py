"""Runs whose texts, experts and parameters are divided at once: the losses of one process."""

import shutil
from dataclasses import replace

import pytest
import torch
from support.networks import GROUPED
from support.processes import run_processes
from support.runs import numbers, run, write_configs

import limelight
from limelight.models import DecoderOnly, recipe
from limelight.models.new import new
from limelight.nn import SSRU, ClassHead, MixtureOfExperts, Sinusoids, SpectrumEmbedding, Switch
from limelight.tensors.shapes import ArgumentError
from limelight.training.dividing import check_divisible

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = ("run.steps=4", "run.batch_tokens=96")
DROPOUT = ("model.dropout_rate=0.2",)
ROUTING = ("model.router_jitter_noise=0.1", "model.router_z_loss_coef=0.1", "model.router_aux_loss_coef=0.5")
#: A run on four processes: its model, what divides it, other settings, and the batches of a step.
CASES = {
    "context": ("llama", ("context=4",), (), 1),
    "context, tensor": ("llama", ("context=2", "tensor=2"), (), 1),
    "context, shard": ("llama", ("context=2", "shard=2"), (), 2),
    "t5, context": ("t5", ("context=2",), DROPOUT, 2),
    "t5, context, tensor": ("t5", ("context=2", "tensor=2"), (), 1),
    "mixtral, context, shard": ("mixtral", ("context=2", "shard=2"), ROUTING, 2),
    "experts": ("mixtral", ("experts=4",), ROUTING, 4),
    "experts, context": ("mixtral", ("experts=2", "context=2"), ROUTING, 2),
    "experts, shard": ("mixtral", ("experts=2", "shard=4"), ROUTING, 4),
    "experts, context, tensor": ("mixtral", ("experts=2", "context=2", "tensor=2"), ROUTING, 1),
}
FULL = recipe(MixtureOfExperts, inner=8, activation="silu", experts=4, router=Switch)
#: How a run is divided when it is resumed.
RESUMED = {"context, shard": ("run.shard=2", "run.tensor=2")}


def settings_of(case):
    _, divided, others, _ = CASES[case]
    return *(f"run.{one}" for one in divided), *STEPS, *others


def on_four_ranks(folder):
    for name, (model, *_) in CASES.items():
        run(folder / model / "tiny.toml", folder / name, *settings_of(name))
    for name, divided in RESUMED.items():  # after two of four steps, with another division
        model, _, others, _ = CASES[name]
        resumed = folder / f"{name}, resumed"
        if torch.distributed.get_rank() == 0:
            shutil.copytree(folder / name, resumed)
            shutil.rmtree(resumed / "checkpoints" / "step-00000004")
        torch.distributed.barrier()
        run(folder / model / "tiny.toml", resumed, *divided, *STEPS, *others, resume=True)


def test_losses_are_those_of_one_process(tmp_path):
    """One test, since processes take seconds to start.

    Sums over ranks are rounded in another order, and AdamW divides small gradients by themselves: after four steps
    losses differ by less than 1e-5 of themselves.
    """
    folder = write_configs(tmp_path)
    run_processes(on_four_ranks, 4, folder)
    for name, (model, _, others, batches) in CASES.items():
        one = folder / f"{name}, one process"
        run(folder / model / "tiny.toml", one, *STEPS, *others, f"run.accumulation_steps={batches}")
        for ours, theirs in zip(numbers(folder / name), numbers(one), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True), name
        published = limelight.load(folder / name).network.state_dict()
        for key, values in limelight.load(one).network.state_dict().items():
            torch.testing.assert_close(published[key], values, rtol=1e-4, atol=1e-4)
    for name in RESUMED:
        for ours, theirs in zip(numbers(folder / f"{name}, resumed"), numbers(folder / name), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True), name


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"attention": recipe(SSRU)}, r"layers.0.attention.inner is SSRU, and its state goes"),
        ({"feed_forward": FULL}, "layers.0.feed_forward.inner.router is Switch, and an expert is full"),
        ({"embedding": recipe(SpectrumEmbedding, bands=3, positions=Sinusoids)}, "embedding is SpectrumEmbedding"),
        ({"head": recipe(ClassHead, labels=("a", "b"), activation=None)}, "head is ClassHead"),
    ],
)
def test_what_reads_other_tokens_is_refused(changes, why):
    network = DecoderOnly(replace(new("llama", **GROUPED).config, **changes))
    with pytest.raises(ArgumentError, match=rf"`run.context` must be 1 where .* {why}"):
        check_divisible(network)
