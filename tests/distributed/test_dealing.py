"""How tokens are dealt to ranks, each once, and how the keys that are exchanged are joined to pieces."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from limelight import Causal, Packed
from limelight.distributed import deal
from limelight.distributed.plan import pieces_of
from limelight.distributed.runs import checked_runs, count


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
