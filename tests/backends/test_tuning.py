"""The tables of tiles: what a call needs beside plain scores, and the tiles that follow from it."""

import itertools

import pytest
import torch

from limelight import ALiBi, Bias, Causal, Explicit, Keys, Observe, Packed, Paged, RelativeBias, SoftCap, Window
from limelight.backends.gpu import arguments, tuning
from limelight.backends.gpu.tuning import NOTHING, Needs
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

GENERATIONS = ("ampere", "hopper", "blackwell", "other", "rocm")
WIDTHS = (16, 32, 64, 96, 128, 192, 256, 512)
BIAS, TABLE = Bias(torch.zeros(2, 32, 32)), RelativeBias(torch.zeros(2, 32))

CALLS = [
    ({}, NOTHING),
    ({"pattern": Causal()}, NOTHING),
    ({"scores": (ALiBi(torch.ones(2)), SoftCap(3.0))}, Needs.RULES),
    ({"scores": (BIAS,)}, Needs.RULES | Needs.PAIRS),
    ({"scores": (TABLE,)}, Needs.RULES | Needs.DISTANCES),
    ({"pattern": Explicit(torch.eye(32, dtype=torch.bool))}, Needs.MAP),
    ({"layout": Packed((20, 12))}, Needs.DOCUMENTS),
    ({"pattern": Causal() & (Window(4, 0) | Keys(first=1))}, Needs.INTERVALS),
    ({"dropout": 0.1, "seed": 3}, Needs.DROPOUT),
    ({"observe": Observe(entropy=True)}, Needs.ENTROPY),
    ({"observe": Observe(top=2, received=True)}, NOTHING),
]


def test_pages_are_a_need():
    pages, layout = torch.zeros(2, 2, 16, 16), Paged((1, 1), (20, 9), [[0, 1], [1, 0]])
    call = prepare(torch.zeros(1, 2, 2, 16), pages, pages, Settings(pattern=Causal(), layout=layout))
    assert Needs.PAGES in arguments.needs(call)


@pytest.mark.parametrize(("settings", "needs"), CALLS, ids=lambda x: str(x) if isinstance(x, Needs) else "")
def test_what_a_call_needs(settings, needs):
    q = torch.zeros(1, 2, 32, 16)
    assert arguments.needs(prepare(q, q, q, Settings(**settings))) == needs


def all_needs():
    """All combinations of up to three needs."""
    for count in range(4):
        for chosen in itertools.combinations(Needs, count):
            needs = NOTHING
            for need in chosen:
                needs |= need
            yield needs


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_need_never_makes_a_forward_tile_larger(generation):
    for itemsize, widest, needs in itertools.product((2, 4), WIDTHS, all_needs()):
        plain, tile = (tuning.forward_tile(generation, itemsize, widest, 4096, n) for n in (NOTHING, needs))
        assert tile.rows <= plain.rows
        assert tile.keys <= plain.keys
        assert tile.keys * tile.stages <= plain.keys * plain.stages  # what moves through shared memory
        assert min(tile.rows, tile.keys) >= 16


@pytest.mark.parametrize("generation", GENERATIONS)
def test_few_rows_have_small_tiles(generation):
    for widest, needs, rows in itertools.product(WIDTHS, all_needs(), (1, 17, 32, 64, 100)):
        whole = tuning.forward_tile(generation, 2, widest, 4096, needs)
        tile = tuning.forward_tile(generation, 2, widest, rows, needs)
        assert tile.rows <= max(16, 2 * rows - 1)
        assert tile.rows >= min(rows, whole.rows)
        assert tile.keys == whole.keys or (generation == "blackwell" and tile.keys < whole.keys)
        assert tile.stages == whole.stages or tile.keys < whole.keys or Needs.PAGES in needs


@pytest.mark.parametrize("generation", GENERATIONS[:-1])
def test_decoding_over_pages_copies_two_blocks_ahead(generation):
    """Of the stages but one, the compiler gives half to the numbers of pages and half to keys and values."""
    for itemsize, widest in itertools.product((2, 4), WIDTHS):
        assert (tuning.forward_tile(generation, itemsize, widest, 4, Needs.PAGES).stages - 1) // 2 >= 2


@pytest.mark.parametrize("generation", GENERATIONS)
def test_the_most_demanding_call_has_tiles_for_every_kernel(generation):
    for itemsize, widest, needs in itertools.product((2, 4), WIDTHS, (NOTHING, ~NOTHING)):
        kind = generation, itemsize, widest
        tiles = [
            *tuning.backward_tiles(*kind, needs), *tuning.score_tiles(*kind), tuning.observing_tile(*kind, needs),
            tuning.summing_tile(*kind), tuning.flash1_tile(*kind), tuning.largest_tile(*kind, needs, 64),
            tuning.column_tile(*kind, needs, 100, 100)[0],
        ]  # fmt: skip
        assert all(min(tile.rows, tile.keys) >= 16 for tile in tiles)
        assert all(n & (n - 1) == 0 for tile in tiles for n in (tile.rows, tile.keys, tile.warps))
        of_distances = tuning.score_tiles(*kind)[1]
        assert of_distances.rows <= of_distances.keys  # two tiles hold the keys of all its distances
