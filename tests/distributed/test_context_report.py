"""What each rank computes, sends and receives, by count: against sums over all pairs of ranks."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.testing._internal.distributed.fake_pg import FakeStore

import limelight
from limelight import ALiBi, Causal, Full, Keys, Packed, Window
from limelight.distributed import ContextParallel, ContextReport, deal, keys_moved, make_plan
from limelight.forms.layouts import Aligned

PATTERNS = {
    "full": Full(),
    "causal": Causal(),
    "window": Causal() & Window(99, 0),
    "sinks": Causal() & (Window(99, 0) | Keys(4)),
}
LENGTH, RANKS = 3000, 4


@pytest.fixture(scope="module")
def group():
    """Rank 1 of four, of which the others do not exist: nothing here communicates."""
    dist.init_process_group("fake", rank=1, world_size=RANKS, store=FakeStore())
    yield dist.group.WORLD
    dist.destroy_process_group()


@given(st.data())
def test_keys_moved_are_those_that_each_rank_sends_each_other(data):
    length, ranks = data.draw(st.integers(0, 2500)), data.draw(st.integers(1, 6))
    pattern = PATTERNS[data.draw(st.sampled_from(sorted(PATTERNS)))]
    cut = data.draw(st.integers(0, length))
    layout = Packed((cut, length - cut)) if data.draw(st.booleans()) else Aligned()
    runs = deal(length, ranks, [Causal()])
    plans = [
        make_plan(pattern, layout, (1, 1, length, length), runs, runs, rank, contiguous=False) for rank in range(ranks)
    ]
    sent, received = keys_moved(plans[0].needs, runs)
    assert sent == tuple(sum(plan.tokens(plan.rank, to) for to in range(ranks)) for plan in plans)
    assert received == tuple(sum(plan.tokens(sender, plan.rank) for sender in range(ranks)) for plan in plans)
    assert [received[plan.rank] for plan in plans] == [
        sum(length for sender, some in enumerate(plan.received) if sender != plan.rank for length, _ in some)
        for plan in plans
    ]


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("layout", [None, Packed((700, 1100, 1200))], ids=["one text", "documents"])
def test_what_a_report_says(group, name, layout):
    pattern = PATTERNS[name]
    spread = ContextParallel.balanced(group, LENGTH, patterns=[pattern], layout=layout)
    report = spread.explain(pattern, batch=2, heads=6, key_value_heads=3, width=16, value_width=8, dtype=torch.float32)
    assert sum(report.tokens) == sum(report.keys_held) == LENGTH
    assert sum(report.pairs) == pattern.pairs(LENGTH, layout=layout, batch=2, heads=6)
    assert sum(report.keys_sent) == sum(report.keys_received)
    assert report.key_bytes == 2 * 3 * (16 + 8) * 4
    assert report.bytes_sent == tuple(n * report.key_bytes for n in report.keys_sent)
    if report.gathers:  # of each rank as much as the one with most holds
        assert set(report.keys_received) == {(RANKS - 1) * max(report.keys_held)}
    else:
        assert all(got <= most for got, most in zip(report.bytes_received, report.bytes_of_all_gather, strict=True))
    assert report.gathers or layout is not None or name not in ("full", "causal")
    assert not (report.gathers and name in ("window", "sinks"))
    assert report.imbalance == pytest.approx(max(report.pairs) / (sum(report.pairs) / RANKS))
    text = str(report).splitlines()
    assert len(text) == 2 + RANKS
    assert f"{RANKS} ranks by {'all-gather' if report.gathers else 'all-to-all'}" in text[0]
    assert f"{report.pairs[2]:,}" in text[4]


def test_a_window_sends_less_than_an_all_gather(group):
    spread = ContextParallel.balanced(group, 8 * 192 * RANKS, patterns=[PATTERNS["window"]])
    report = spread.explain(PATTERNS["window"])
    assert max(report.keys_received) <= 128 + 64  # 99 keys before a run, on the grid
    assert min(report.bytes_of_all_gather) == 3 * 8 * 192 * 2 * 128 * 2


def test_an_empty_text_is_balanced(group):
    report = ContextParallel.balanced(group, 0).explain(Causal())
    assert (report.imbalance, report.pairs, report.bytes_sent) == (1.0, (0,) * RANKS, (0,) * RANKS)


def test_many_ranks_are_reported_by_their_extremes(group):
    spread = ContextParallel.balanced(group, LENGTH, patterns=[Causal()])
    report = spread.explain(Causal())
    columns = [column * 8 for column in (report.tokens, report.pairs, report.keys_held)]
    many = ContextReport(3, *columns, (0,) * 31 + (5,), (1,) * 32, 2**20)
    text = str(many).splitlines()
    assert [line.split()[0] for line in text[2:]] == ["3", "smallest", "largest"]
    assert text[4].split()[3:5] == ["5.00", "1.00"]


@pytest.mark.parametrize("name", PATTERNS)
def test_explain_reports_the_own_call_and_all_ranks(group, name):
    pattern = PATTERNS[name]
    spread = ContextParallel.balanced(group, LENGTH, patterns=[pattern])
    query = spread.mine(torch.randn(1, 4, LENGTH, 16), 2)
    key = spread.mine(torch.randn(1, 2, LENGTH, 16), 2).requires_grad_()
    found = limelight.explain(query, key, key, layout=spread, pattern=pattern)
    report = spread.explain(pattern, heads=4, key_value_heads=2, width=16, dtype=torch.float32)
    assert found.over_ranks == report
    assert found.pairs == report.pairs[1]
    assert found.backend == "native"
    assert found.gradients
    assert str(found).endswith(str(report))


def test_keys_between_those_that_are_seen_are_counted_where_kernels_count_positions(group):
    pattern = PATTERNS["sinks"]
    spread = ContextParallel.balanced(group, 192 * 8 * RANKS, patterns=[pattern])
    tokens = torch.randn(1, 4, 192 * 8, 16)
    plain = limelight.explain(tokens, tokens, tokens, layout=spread, pattern=pattern)
    alibi = limelight.explain(tokens, tokens, tokens, layout=spread, pattern=pattern, scores=[ALiBi(torch.ones(4))])
    assert sum(alibi.over_ranks.keys_sent) > 3 * sum(plain.over_ranks.keys_sent)
    assert alibi.over_ranks == spread.explain(pattern, heads=4, width=16, dtype=torch.float32, contiguous=True)


def test_the_exchanges_of_a_few_heads_at_a_time_are_counted(group):
    spread = ContextParallel.balanced(group, LENGTH, patterns=[Causal()], heads_at_once=2)
    tokens = spread.mine(torch.randn(1, 5, LENGTH, 16), 2)
    found = limelight.explain(tokens, tokens, tokens, layout=spread, pattern=Causal()).over_ranks
    assert found == spread.explain(Causal(), heads=5, width=16, dtype=torch.float32)
    assert "; in 3 exchanges of some heads each" in str(found)
    dropped = limelight.explain(tokens, tokens, tokens, layout=spread, pattern=Causal(), dropout=0.1).over_ranks
    assert dropped == spread.explain(Causal(), heads=5, width=16, dtype=torch.float32, dropout=True)
    assert dropped.exchanges == 1


def test_explain_without_ranks_reports_none():
    tokens = torch.randn(1, 1, 8, 16)
    found = limelight.explain(tokens, tokens, tokens)
    assert found.over_ranks is None
    assert "ranks" not in str(found)
