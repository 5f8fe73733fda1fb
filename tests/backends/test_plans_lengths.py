"""A plan of one length, bound to another, launches what the code launches for that length."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.launches import as_written, check_launches, forward, settled

from limelight import ALiBi, Aligned, Bias, Causal, Explicit, Keys, Packed, Padded, Paged, RelativeBias, SoftCap, Window
from limelight.backends.gpu import flash2, machine, plans
from limelight.backends.gpu.capturing import Capture
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter")

PATTERNS = [None, Causal(), Causal() & Window(40, 0), Causal() & (Window(20, 0) | Keys(4)), ~Window(3, 3)]
SCORES = [(), (SoftCap(3.0),), (ALiBi(torch.rand(4)),), (ALiBi(torch.rand(2, 4)), SoftCap(2.0))]


def in_buffer(B, H, L, D):
    """The first keys of a buffer that is longer."""
    return torch.zeros(B, H, 640, D, dtype=torch.float16)[:, :, :L]


def anew(B, H, L, D):
    return torch.zeros(B, H, L, D, dtype=torch.float16)


def by_token(B, H, L, D):
    return torch.zeros(B, L, H, D, dtype=torch.float16).transpose(1, 2)


def check(monkeypatch, log, call):
    """A call launches the same with plans and without, at least to what kernels are compiled for."""
    check_launches(monkeypatch, log, forward, flash2, call)


@st.composite
def texts(draw):
    """Calls of one text that grows: a function of its length."""
    make, pattern, scores = draw(st.sampled_from([in_buffer, anew, by_token])), *map(draw, map(st.sampled_from, KINDS))
    group, Lq = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 16, 40]))
    D, sink = draw(st.sampled_from([16, 24])), torch.rand(4) if draw(st.booleans()) else None
    layout = draw(st.sampled_from(list(LAYOUTS)))

    def call(length):
        length = max(length, Lq)
        tensors = anew(2, 4, Lq, D), make(2, 4 // group, length, D), make(2, 4 // group, length, D)
        chosen = Settings(layout=LAYOUTS[layout](Lq, length), pattern=pattern, scores=scores, sink=sink)
        return prepare(*tensors, chosen)

    return call


KINDS = (PATTERNS, SCORES)
LAYOUTS = {
    "whole": lambda Lq, Lk: None,
    "placed": lambda Lq, Lk: Aligned(query_start=5),
    "placed by row": lambda Lq, Lk: Aligned(query_start=torch.tensor([Lk - Lq, 3])),
    "padded": lambda Lq, Lk: Padded(torch.tensor([Lq, Lq - Lq // 2]), torch.tensor([Lk, Lk - Lk // 3])),
    "packed": lambda Lq, Lk: Packed((Lq // 2, Lq - Lq // 2), (Lk // 2, Lk - Lk // 2)),
}


@settings(max_examples=25)
@given(texts(), st.integers(1, 600), st.lists(st.integers(1, 600), max_size=3))
def test_growing_texts(monkeypatch, logged, call, first, others):
    """Beside lengths one more each, some others: with plans of all earlier examples."""
    for length in (*range(first, min(first + 20, 600)), *others, first):
        check(monkeypatch, logged, call(length))


@settings(max_examples=10)
@given(st.integers(17, 60), st.sampled_from([1, 3]), st.sampled_from(PATTERNS[1:4]))
def test_growing_pages(monkeypatch, logged, first, queries, pattern):
    stored = anew(16, 2, 16, 16)
    for length in range(first, first + 36):
        layout = Paged((queries, 2), (length, 20), [[3, 9, 0, 5, 7, 1, 4], [2, 6, -1, -1, -1, -1, -1]])
        check(
            monkeypatch,
            logged,
            prepare(anew(1, 4, queries + 2, 16), stored, stored.clone(), Settings(layout=layout, pattern=pattern)),
        )
    assert any(plan.tables for plan in settled())


def test_a_decoding_loop_is_captured_a_few_times(monkeypatch, logged):
    """Not once for each token: kinds differ by divisibility by 16 alone."""
    captures = []
    run = Capture.run
    monkeypatch.setattr(Capture, "run", lambda self, compute: captures.append(self) or run(self, compute))
    key = torch.zeros(1, 2, 400, 16, dtype=torch.float16)
    for length in range(200, 330):
        tensors = torch.zeros(1, 4, 1, 16, dtype=torch.float16), key[:, :, :length], key[:, :, :length]
        forward(flash2, prepare(*tensors, Settings(pattern=Causal())))
    assert len(captures) <= 3
    assert len(settled()) > 100  # one for each length, which the other layers of a model repeat


def test_layers_of_one_length_share_its_plan(monkeypatch, logged):
    bound = []
    find = flash2._lengths
    monkeypatch.setattr(flash2, "_lengths", lambda call: bound.append(call) or find(call))
    for length in range(101, 111):
        for _ in range(3):
            check(monkeypatch, logged, prepare(anew(1, 4, 1, 16), *in_buffer(2, 2, length, 16).split(1), Settings()))
    assert len(bound) == 2 + 9  # the first of the first length runs as it is written, the second is captured


def test_what_depends_on_lengths_otherwise_has_a_plan_for_each(logged):
    mask = torch.rand(3, 70) < 0.5
    for change in (
        {"scores": (RelativeBias(torch.rand(4, 32)),)},
        {"scores": (Bias(torch.rand(3, 70)),)},
        {"pattern": Explicit(mask)},
    ):
        call = prepare(anew(1, 4, 3, 16), anew(1, 4, 70, 16), anew(1, 4, 70, 16), Settings(**change))
        arithmetic = call.lowered.tiles is None
        assert not arithmetic or flash2._lengths(call) is None
    key = anew(1, 4, 16, 70).mT  # its rows are copied
    assert flash2._lengths(prepare(anew(1, 4, 3, 16), key, key, Settings())) is None


def test_a_capture_checks_what_follows_from_lengths(logged):
    """Integers and tables that are not those of the launches make no plan for other lengths, but for this one."""
    call = prepare(anew(1, 4, 1, 16), anew(1, 4, 70, 16), anew(1, 4, 70, 16), Settings())
    right = flash2._lengths(call)
    inputs = call.query, call.key, call.value
    for numbers, tables, why in (
        (right.numbers, (), ""),
        (right.numbers | {"segment": (0, 1, 0, 71, 70, 0)}, (), "integers of a launch"),
        ({}, (), "integers of a launch"),
        (right.numbers, (torch.zeros(4),), "made anew"),
    ):
        capture = Capture(inputs, tables)
        results = capture.run(lambda: forward_alone(call))
        found = capture.why_one_length(numbers)
        assert why in found
        assert bool(why) == bool(found)
        assert capture.plan(results) is not None


def forward_alone(call):
    result = flash2._forward(call)
    return result.output, result.logsumexp


def test_plans_bound_to_lengths_are_computed(monkeypatch):
    """In the interpreter, to the bit."""
    generator = torch.Generator().manual_seed(3)
    for length in range(30, 40):
        query, key, value = (torch.randn(1, 2, n, 16, generator=generator) for n in (1, length, length))
        call = prepare(query, key, value, Settings(pattern=Causal() & Window(20, 0)))
        expected = as_written(monkeypatch, forward, flash2, call)
        for a, b in zip(expected, forward(flash2, call), strict=True):
            assert torch.equal(a, b)
    assert len(plans._of_arithmetic) > 5


def test_an_operation_of_pytorch_leaves_the_plan_to_one_length(monkeypatch, logged):
    """Here it writes what queries give that do not exist."""
    for length in (40, 41, 41, 41, 42):
        layout = Padded(torch.tensor([2]), torch.tensor([length]))
        check(monkeypatch, logged, prepare(anew(1, 4, 3, 16), *[anew(1, 4, length, 16)] * 2, Settings(layout=layout)))
    assert [plan.has_operations for plan in settled()] == [True, True]  # of 41 and 42: the first call counts alone
