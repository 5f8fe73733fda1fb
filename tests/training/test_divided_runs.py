"""Runs whose model is divided among processes: the losses of one process, saved and resumed on any number of them."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.processes import run_processes
from support.runs import IN_ALL, losses, numbers, run, write_configs

import limelight
from limelight.distributed.failures import RankError
from limelight.formats.errors import CheckpointError
from limelight.tensors.shapes import ArgumentError
from limelight.training.data import Texts

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The folder of the settings of each model."""
    return write_configs(tmp_path_factory.mktemp("divided"))


def on_four_ranks(folder):
    """A run of four processes, one of them interrupted and resumed, and the same on shards and replicas alone."""
    config = folder / "llama" / "tiny.toml"
    run(config, folder / "whole", "run.shard=2", "run.tensor=2")
    run(config, folder / "killed", "run.shard=2", "run.tensor=2", resume=True)
    run(config, folder / "stopped", "run.shard=2", "run.tensor=2", "run.steps=4", "run.evaluate_every=2")
    run(config, folder / "stopped", "run.shard=2", "run.tensor=2", resume=True)
    with pytest.raises(IN_ALL, match=r"`run.shard` must divide the number of processes, but 3 does not divide 4"):
        run(config, folder / "odd", "run.shard=3")
    with pytest.raises(IN_ALL, match=r"`run.tensor` must divide the key-value heads .* but 4 does not divide the 2"):
        run(config, folder / "heads", "run.tensor=4")


def on_two_ranks(folder):
    """Runs of four processes and of one, resumed on two."""
    config = folder / "llama" / "tiny.toml"
    run(config, folder / "fewer", "run.shard=2", resume=True)
    run(config, folder / "more", "run.shard=2", resume=True)
    run(folder / "t5" / "tiny.toml", folder / "t5 on two", "run.tensor=2")
    with pytest.raises(IN_ALL, match=r"`run.accumulation_steps` must keep .* Set run.accumulation_steps=2\."):
        run(config, folder / "other", "run.tensor=2", "run.accumulation_steps=1", resume=True)


def failing(how):
    """Make batches of the fourth step fail."""
    read = Texts.batch

    def batch(self, number):
        if number >= 6:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hangs":
                time.sleep(600)
            raise torch.OutOfMemoryError("1 GiB could not be allocated.")
        return read(self, number)

    Texts.batch = batch


def killed_on_four_ranks(folder):
    """A run of which rank 2 is killed in the fourth step: what the others raise."""
    if os.environ["RANK"] == "2":
        failing("killed")
    try:
        run(folder / "llama" / "tiny.toml", folder / "killed", "run.shard=2", "run.tensor=2")
    except RankError as error:
        return str(error), error.rank, error.reports, error.unexpected


def hanging_on_two_ranks(folder):
    """A run of which rank 1 stops in the fourth step: what the other raises after the timeout."""
    if os.environ["RANK"] == "1":
        failing("hangs")
    try:
        run(folder / "llama" / "tiny.toml", folder / "hanging", "run.shard=2", "run.timeout=8")
    except RankError as error:
        return str(error), error.reports


def copy_at(folder, source, target, step):
    """A run as it was after a step."""
    shutil.copytree(folder / source, folder / target)
    for checkpoint in (folder / target / "checkpoints").iterdir():
        if int(checkpoint.name.removeprefix("step-")) > step:
            shutil.rmtree(checkpoint)


def test_divided_runs(config):
    """One test, since processes take seconds to start."""
    folder = config
    one = folder / "llama" / "tiny.toml"
    run(one, folder / "one", "run.accumulation_steps=2")
    # a rank whose connection to rank 2 is open still may be ended while it waits, without a result
    ended = [one for one in run_processes(killed_on_four_ranks, 4, folder, ended=(2,)) if one is not None]
    assert all(message.startswith("rank 2 of 4 ended without a message") for message, *_ in ended)
    assert sorted(reports for _, _, reports, _ in ended)[-2:] in ([True], [False, True])
    assert {(rank, unexpected) for _, rank, _, unexpected in ended} == {(2, None)}
    run_processes(on_four_ranks, 4, folder)
    assert losses(folder / "killed") == losses(folder / "whole")
    assert losses(folder / "stopped") == losses(folder / "whole")
    assert len([*(folder / "whole" / "checkpoints").iterdir()]) == 3
    copy_at(folder, "whole", "fewer", 4)
    copy_at(folder, "one", "more", 2)
    copy_at(folder, "one", "other", 2)
    copy_at(folder, "whole", "alone", 2)
    run_processes(on_two_ranks, 2, folder)
    run(one, folder / "alone", "run.accumulation_steps=2", resume=True)
    run(folder / "t5" / "tiny.toml", folder / "t5 on one")
    for name in ("whole", "fewer", "more", "alone", "t5 on two"):
        other = folder / ("t5 on one" if name == "t5 on two" else "one")
        for ours, theirs in zip(numbers(folder / name), numbers(other), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, nan_ok=True), name
        published = limelight.load(folder / name).network.state_dict()
        for key, values in limelight.load(other).network.state_dict().items():
            torch.testing.assert_close(published[key], values, rtol=1e-4, atol=1e-4)

    damaged = next((folder / "killed" / "checkpoints" / "step-00000006").glob("shard-00002-*"))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"shard-00002-.* Remove .*step-00000006 to resume from .*step-00000004"):
        run(one, folder / "killed", "run.accumulation_steps=2", resume=True)


def test_a_rank_that_hangs_is_named_after_the_timeout(config):
    (message, reports), _ = run_processes(hanging_on_two_ranks, 2, config, ended=(1,))
    assert message.startswith("rank 1 of 2 did not answer the others within run.timeout")
    assert reports


def test_torchrun_reports_a_rank_without_memory_once(config, tmp_path):
    script = tmp_path / "failing.py"
    script.write_text(
        "import os\nfrom limelight.cli import main\nfrom test_divided_runs import failing\n"
        "if os.environ['RANK'] == '1':\n    failing('memory')\nmain()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    command += ["train", str(config / "llama" / "tiny.toml"), "--output", str(tmp_path / "run")]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    reported = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(reported) == 1, done.stderr
    assert "rank 1 of 2 failed with OutOfMemoryError: 1 GiB could not be allocated. Lower run.batch_t" in reported[0]
    assert "in batch\n" not in done.stderr  # no traceback


@pytest.mark.parametrize(
    ("over", "why"),
    [
        (("run.shard=2",), r"`run.shard` must .* it is 2, and there is 1 process.*torchrun --nproc_per_node 2"),
        (("run.experts=2",), r"`run.experts` must .* it is 2, and there is 1 process"),
        (("run.shard=2", "run.context=3"), r"`run.shard \* run.context` .* their product is 6.*--nproc_per_node 6"),
    ],
)
def test_sizes_need_processes(config, tmp_path, over, why):
    with pytest.raises(ArgumentError, match=why):
        run(config / "llama" / "tiny.toml", tmp_path / "run", *over)
