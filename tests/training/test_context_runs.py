"""Runs whose texts, experts and parameters are divided at once: the losses of one process."""

import shutil
from dataclasses import replace

import pytest
import torch
from support.networks import GROUPED
from support.processes import run_processes
from support.runs import IN_ALL, numbers, run, write_configs

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
#: A run that is resumed after two steps, and how it is divided then.
RESUMED = {
    "context, shard": ("run.shard=2", "run.tensor=2"),
    "experts": ("run.experts=2", "run.context=2", "run.shard=2", "run.accumulation_steps=2"),
    "experts, one process": ("run.experts=2", "run.tensor=2", "run.accumulation_steps=2"),
}
REFUSED = {
    "run.experts=3": r"`run.experts` must divide the number of processes, but 3 does not divide 4",
    "run.context=3": r"`run.context` must divide the number of processes, but 3 does not divide 4",
}


def settings_of(case):
    _, divided, others, _ = CASES[case]
    return *(f"run.{one}" for one in divided), *STEPS, *others


def config_of(folder, name):
    return folder / CASES[name.removesuffix(", one process")][0] / "tiny.toml"


def copy_after_two(folder, name, target):
    shutil.copytree(folder / name, folder / target)
    shutil.rmtree(folder / target / "checkpoints" / "step-00000004")


def on_four_ranks(folder):
    for name in CASES:
        run(config_of(folder, name), folder / name, *settings_of(name))
    for name, divided in RESUMED.items():
        if torch.distributed.get_rank() == 0:
            copy_after_two(folder, name, f"{name}, resumed")
        torch.distributed.barrier()
        others = CASES[name.removesuffix(", one process")][2]
        run(config_of(folder, name), folder / f"{name}, resumed", *divided, *STEPS, *others, resume=True)
    for over, why in REFUSED.items():
        with pytest.raises(IN_ALL, match=why):
            run(folder / "mixtral" / "tiny.toml", folder / "refused", over)
    with pytest.raises(IN_ALL, match=r"`run.experts` must be 1 for a model without mixtures of experts, but it is 2"):
        run(folder / "llama" / "tiny.toml", folder / "refused", "run.experts=2")


def test_losses_are_those_of_one_process(tmp_path):
    """One test, since processes take seconds to start.

    Sums over ranks are rounded in another order, and AdamW divides small gradients by themselves: after four steps
    losses and norms of gradients differ by less than 1e-5 of themselves.
    """
    folder = write_configs(tmp_path)
    alone = {}
    for name, (_, _, others, batches) in CASES.items():
        alone[name] = (*STEPS, *others, f"run.accumulation_steps={batches}")
        run(config_of(folder, name), folder / f"{name}, one process", *alone[name])
    run_processes(on_four_ranks, 4, folder)
    copy_after_two(folder, "experts", "experts, resumed on one")
    run(config_of(folder, "experts"), folder / "experts, resumed on one", *alone["experts"], resume=True)
    for name in (*CASES, *(f"{name}, resumed" for name in RESUMED), "experts, resumed on one"):
        one = folder / f"{name.partition(', resumed')[0].removesuffix(', one process')}, one process"
        for ours, theirs in zip(numbers(folder / name), numbers(one), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True), name
        published = limelight.load(folder / name).network.state_dict()
        for key, values in limelight.load(one).network.state_dict().items():
            torch.testing.assert_close(published[key], values, rtol=1e-4, atol=1e-4)


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
