"""The arithmetic of `benchmarks/scaling.py`, against sums over all pairs of ranks and counts over whole masks."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from limelight import Causal, Keys, Packed, Window
from limelight.distributed import deal, make_plan
from limelight.forms.layouts import Aligned

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATTERNS = [Causal(), Causal() & Window(255, 0), Causal() & (Window(99, 0) | Keys(4))]


@pytest.fixture(scope="module")
def scaling():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        spec = importlib.util.spec_from_file_location("scaling", BENCHMARKS / "scaling.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "scaling", module)  # its data classes look themselves up
        spec.loader.exec_module(module)
        yield module


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("layout", [None, Packed((700, 1100, 1300))], ids=["one text", "documents"])
def test_the_slowest_rank_of_an_exchange(scaling, pattern, layout):
    length, ranks = 3100, 6
    machine = scaling.Machine(node=4, bandwidth=1.0, node_bandwidth=3.0, latency=2.0)
    runs = deal(length, ranks, [Causal()], layout)
    plan = make_plan(pattern, layout or Aligned(), (1, 1, length, length), runs, runs, 0, contiguous=False)
    keys = np.array([[len(both(plan.held[a], plan.needs[b])) * (a != b) for b in range(ranks)] for a in range(ranks)])
    beside = np.arange(ranks)[:, None] // 4 == np.arange(ranks) // 4
    wanted = []
    for axis in (0, 1):  # received, sent
        near, far = (keys * beside).sum(axis) / 3.0, (keys * ~beside).sum(axis) / 1.0
        wanted.append(np.maximum(near, far) * 100 / 1e9 + (keys > 0).sum(axis) * 2e-6)
    assert scaling.exchange_seconds(plan, machine, 100) == pytest.approx(np.max(wanted))


def both(some, others):
    tokens = [{n for first, last in runs for n in range(first, last)} for runs in (some, others)]
    return tokens[0] & tokens[1]


def test_pairs_are_counted_by_whole_tiles(scaling):
    length = 4 * 128
    runs = (((0, 128), (384, 512)), ((128, 384),))
    assert scaling.pairs_by_rank(Causal(), None, length, runs).tolist() == [5 * 128 * 128, 5 * 128 * 128]
    window = Causal() & Window(1, 0)  # the tile before a tile is seen by its first query
    assert scaling.pairs_by_rank(window, None, length, runs).tolist() == [3 * 128 * 128, 4 * 128 * 128]


def test_a_step_of_one_gpu_waits_for_no_keys(scaling):
    shape = scaling.Shape(layers=2, d_model=64, heads=2, key_value_heads=1, width=32, d_ff=128, vocabulary=100)
    machine = scaling.Machine()
    step = scaling.simulate(shape, machine, {Causal(): 2}, None, 1024, 1, 1)
    assert set(step.exposed.values()) == {0.0}
    layer = 64 * (2 * 3 * 32 + 3 * 128)
    assert step.dense == pytest.approx(2 * 1024 * (2 * layer * 4 + 3 * 64 * 100) / 600e12)
    pairs = 128 * 128 * sum(range(1, 9))
    attention = 2 * 4 * 32 * 2 * pairs * (2 / 540e12 + 2.5 / 410e12)
    assert step.attention == pytest.approx(attention)
    assert step.seconds("ring") == pytest.approx(step.dense + attention)


def test_the_exchange_of_a_window_does_not_grow_with_the_ranks(scaling):
    window = {Causal() & Window(255, 0): 2}
    shape, machine = scaling.Shape(layers=2), scaling.Machine()
    few, many = [scaling.simulate(shape, machine, window, None, 2**15, ranks, ranks) for ranks in (16, 64)]
    assert many.exposed["exchanged"] == pytest.approx(few.exposed["exchanged"])
    assert many.exposed["exchanged"] < many.exposed["all-gather"] / 10
