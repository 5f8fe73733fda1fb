"""How tokens are dealt to ranks: each token once, cut at whole tiles, about as many pairs and tokens for each rank."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from limelight import Causal, Packed
from limelight.distributed import deal, dealing, imbalance, pairs_of_tokens
from limelight.distributed.dealing import TILES
from limelight.distributed.plan import checked_runs, count, pieces_of

RANKS = 64


def lengths_of_documents(length):
    """Many short documents and some long ones."""
    draw, found = np.random.default_rng(0), []
    while (rest := length - sum(found)) > 0:
        found.append(min(rest, 2**17, 1 + int(draw.lognormal(np.log(600), 1.46))))
    return tuple(found)


def test_long_documents_among_short_ones_are_balanced_by_unequal_numbers_of_pieces(monkeypatch):
    lengths = lengths_of_documents(2**20)
    layout = Packed(lengths)
    runs = deal(sum(lengths), RANKS, [Causal()], layout)
    work = pairs_of_tokens(sum(lengths), [Causal()], layout)
    assert imbalance(runs, work) < 1.1
    assert imbalance(runs, np.ones(len(work))) < 1.1
    monkeypatch.setattr(dealing, "UNEVEN", ())
    assert imbalance(deal(sum(lengths), RANKS, [Causal()], layout), work) > 1.4
    starts = np.cumsum([0, *lengths])
    for first, _ in (run for held in runs for run in held):
        assert (first - starts[np.searchsorted(starts, first, "right") - 1]) % TILES == 0


@given(st.lists(st.integers(0, 3000), max_size=12), st.integers(1, 9))
def test_each_token_is_dealt_once(lengths, ranks):
    length = sum(lengths)
    runs = deal(length, ranks, [Causal()], Packed(tuple(lengths)) if lengths else None)
    assert checked_runs("runs", runs, ranks) == runs
    assert sum(map(count, runs)) == length


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500))))
def test_pieces_share_no_block_and_end_at_tokens_of_the_runs(runs):
    pieces = pieces_of(runs)
    for (_, end), (begin, _) in pairwise(pieces):
        assert begin // 64 > (end - 1) // 64 + 1
    tokens = {n for first, last in runs for n in range(first, last)}
    assert tokens <= {n for first, last in pieces for n in range(first, last)}
    assert {n for first, last in pieces for n in (first, last - 1)} <= tokens
