"""The Triton kernels in Triton's interpreter against the definition in float64, on small odd calls."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.accuracy import check_close, rounded, steps
from support.strategies import PORTION, Example, examples, sizes

import limelight
from limelight import Additive, Bias, Causal, Explicit, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends.contract import BackendError
from limelight.backends.gpu import flash1, flash2, machine, tuning
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter")

LENGTHS = st.integers(0, 6) | st.sampled_from([15, 16, 17, 33, 40])
SIZES = sizes(lengths=LENGTHS, widths=st.integers(1, 40), batch=st.integers(1, 2), heads=st.integers(1, 2))
CALLS = examples(SIZES, depth=1)
NAN, INF = float("nan"), float("inf")


def run(example: Example, backend="flash2", dtype=torch.float32, **change):
    q, k, v = (change.pop(name, getattr(example, name)).to(dtype) for name in ("query", "key", "value"))
    with rounded(dtype) if backend == "plain" else nullcontext():
        backend = "reference" if backend == "plain" else backend
        return limelight.attention(q, k, v, backend=backend, **(example.settings | change))


def representable(example: Example, dtype) -> Example:
    """The same call with numbers that ``dtype`` has."""
    for name in ("query", "key", "value"):
        setattr(example, name, getattr(example, name).to(dtype).double())
    return example


def check(example: Example, dtype, observe=None, **change):
    """Output and logsumexp of a call against the definition."""
    example = representable(example, dtype)
    observe = Observe(logsumexp=True)
    ours, ours_seen = run(example, dtype=dtype, observe=observe, **change)
    plain, plain_seen = run(example, "plain", dtype, observe=observe, **change)
    truth, truth_seen = run(example, "reference", torch.float64, observe=observe, **change)
    slack = steps(example)
    # Values of both signs cancel; the rounding of a sum is that of its terms, sum_j p_ij |v_j|.
    terms = run(example, "reference", torch.float64, value=example.value.abs()).nan_to_num(0, 0, 0)
    check_close(ours, plain, truth, "output", slack, terms.max().item() if terms.numel() else 0.0, dtype)
    # A logsumexp may be near 0 by cancellation; its error is that of the scores, which is absolute.
    check_close(ours_seen.logsumexp, plain_seen.logsumexp, truth_seen.logsumexp, "logsumexp", slack, 1.0)


@settings(max_examples=40)
@given(CALLS, st.sampled_from([torch.float32, torch.float16]))
def test_equals_the_definition(example, dtype):
    check(example, dtype)


def example_of(Hq=4, Hkv=2, Lq=37, Lk=53, D=24, Dv=40, B=2, **settings):
    generator = torch.Generator().manual_seed(Lq)
    q, k, v = (
        torch.randn(B, h, n, d, generator=generator, dtype=torch.float64)
        for h, n, d in ((Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv))
    )
    return Example(limelight.tensors.shapes.Shapes(B, Hq, Hkv, Lq, Lk, D, Dv), q, k, v, {"scale": None} | settings)


@pytest.mark.parametrize(
    "example",
    [
        example_of(D=512, Dv=65, Lq=17, Lk=20, B=1, pattern=Causal()),
        example_of(2, 1, 70, 150, D=8, Dv=8, B=1, pattern=Explicit(torch.rand(2, 70, 150) < 0.3) & Causal()),
        example_of(Lq=40, Lk=90, B=1, pattern=(Causal() & (Window(9, 0) | Keys(first=3))) | Keys(first=1)),
        example_of(layout=Packed((20, 0, 17), (5, 20, 28)), pattern=Causal(), dropout=0.3, seed=2**61 + 5),
        example_of(Lq=21, Lk=37, layout=PORTION, pattern=Causal(), dropout=0.3, seed=5),
        example_of(compare=Additive(torch.randn(4, 5, dtype=torch.float64)), D=5, Dv=7, B=1, pattern=Causal()),
        example_of(scores=(SoftCap(3.0), Bias(torch.randn(4, 1, 53).masked_fill(torch.rand(53) < 0.2, -INF))), B=1),
        example_of(Hq=6, Hkv=2, Lq=3, Lk=200, D=64, Dv=64, B=1, pattern=Causal(), sink=torch.randn(6)),
        example_of(2, 1, 70, 90, D=41, Dv=96, B=1, pattern=Causal(), sink=torch.randn(2)),
        example_of(1, 1, 70, 60, D=72, Dv=64, B=1, scores=(SoftCap(3.0),), dropout=0.2, seed=4),
        example_of(1, 1, 66, 60, D=16, Dv=160, B=1),
    ],
    ids=[
        "wide",
        "tiles",
        "four spans",
        "packed",
        "documents of batch rows",
        "additive",
        "unseen by a bias",
        "short",
        "two parts",
        "two parts of keys",
        "two parts of values",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_forms(example, dtype):
    check(example, dtype)


@pytest.mark.parametrize("pattern", [None, Causal(), Window(20, 0) | Keys(first=2)], ids=str)
def test_keys_in_parts(pattern, monkeypatch):
    """A short call splits its keys and merges the parts by their logsumexp."""
    monkeypatch.setattr(tuning, "splits", lambda programs, processors, blocks: 3)
    sink = torch.tensor([0.5, NAN, -INF, 2.0])
    example = example_of(Lq=5, Lk=150, pattern=pattern, sink=sink)
    check(example, torch.float32)
    nothing = Explicit(torch.arange(5)[:, None] != 2)
    out = run(example, pattern=nothing)
    assert not out[:, :, 2].any()
    assert out[:, 1, [0, 1, 3, 4]].isnan().all()


@pytest.mark.parametrize(
    ("poison", "which", "splits"),
    [(NAN, "key", 1), (NAN, "value", 1), (INF, "value", 1), (-INF, "key", 2), (-INF, "value", 2)],
)
def test_what_is_not_seen_changes_no_bit(poison, which, splits, monkeypatch):
    monkeypatch.setattr(tuning, "splits", lambda *_: splits)
    example = example_of(pattern=Causal() & Window(9, 0), layout=limelight.Aligned(0))
    before = run(example)
    getattr(example, which)[0, 1, 20, 5 if which == "value" else slice(None)] = poison
    after, truth = run(example), run(example, "reference", torch.float64)
    blind = torch.ones(after.shape, dtype=torch.bool)
    blind[0, 2:, 20:30] = False
    assert torch.equal(before[blind], after[blind])
    assert torch.equal(after.isfinite(), truth.isfinite())
    assert torch.equal(after[~truth.isfinite()].nan_to_num(7), truth[~truth.isfinite()].float().nan_to_num(7))


@pytest.mark.parametrize("column", [5, 35])
def test_values_that_are_not_seen_change_no_bit_in_two_parts(column):
    example = example_of(1, 1, 70, 90, D=40, Dv=40, B=1, pattern=Causal())
    before = run(example)
    example.value[0, 0, 60, column] = INF
    after, truth = run(example), run(example, "reference", torch.float64)
    assert torch.equal(before[truth.isfinite()], after[truth.isfinite()])
    assert torch.equal(after[~truth.isfinite()], truth[~truth.isfinite()].float())
    assert not truth.isfinite().all()


@pytest.mark.parametrize(
    ("size", "parts"),
    [
        (1, (16, 0)), (16, (16, 0)), (24, (32, 0)), (40, (32, 16)), (56, (64, 0)), (64, (64, 0)), (80, (64, 16)),
        (96, (64, 32)), (97, (128, 0)), (112, (128, 0)), (160, (128, 32)), (192, (128, 64)), (320, (256, 64)),
    ],
)  # fmt: skip
def test_a_width_lies_in_two_parts_where_that_is_less(size, parts):
    assert tuning.parts(size) == parts


def test_padding_is_zeros_and_the_sink():
    q = torch.randn(2, 3, 10, 8)
    sink = torch.tensor([0.5, -1.0, -INF])
    layout = Padded(torch.tensor([4, 0]), torch.tensor([0, 7]))
    settings = {"layout": layout, "sink": sink, "observe": Observe(logsumexp=True), "backend": "flash2"}
    out, seen = limelight.attention(q, q, q, **settings)
    assert not out.any()
    assert torch.equal(seen.logsumexp, sink[:, None].expand(2, 3, 10))


def test_same_bits_whatever_the_other_rows():
    example = example_of(pattern=Causal())
    whole = run(example)
    row = {name: getattr(example, name)[-1:] for name in ("query", "key", "value")}
    assert torch.equal(run(example, **row), whole[-1:])
    assert torch.equal(run(example), whole)


def test_reasons():
    def reasons(dtype=torch.float32, D=8, **settings):
        q, k, v = torch.zeros(3, 1, 1, 4, D, dtype=dtype)
        return "; ".join(flash2.reasons_against(prepare(q, k, v, Settings(**settings))))

    assert reasons() == ""
    assert "bfloat16 products wrong" in reasons(torch.bfloat16)
    assert "float64" in reasons(torch.float64)
    assert "takes up to 512" in reasons(D=513)
    assert "32 bits" in reasons(layout=limelight.Aligned(2**40))


def test_a_machine_without_a_gpu_is_told_so(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    q = torch.zeros(1, 1, 4, 8)
    with pytest.raises(BackendError, match="the tensors are on cpu; Triton kernels run on CUDA and ROCm GPUs"):
        limelight.attention(q, q, q, backend="flash2")


@pytest.mark.parametrize("pattern", [None, Causal(), Causal() & (Window(9, 0) | Keys(first=3))], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_first_algorithm(pattern, dtype):
    example = representable(example_of(pattern=pattern, layout=limelight.Aligned(0)), dtype)
    ours, plain, truth = (
        run(example, backend, kind)
        for backend, kind in (("flash1", dtype), ("plain", dtype), ("reference", torch.float64))
    )
    check_close(ours, plain, truth, "output", steps(example), 3.0, dtype)
    example.value[0, 1, 20, 5] = NAN
    after, blind = run(example, "flash1", dtype), run(example, "reference", torch.float64).isfinite()
    assert torch.equal(ours[blind], after[blind])
    assert after[~blind].isnan().all()


def test_the_first_algorithm_is_plain():
    q = torch.zeros(1, 1, 4, 8)
    reasons = flash1.reasons_against(prepare(q, q, q, Settings(scores=(SoftCap(1.0),), dropout=0.5)))
    assert reasons == [f"flash1 does not compute {what}" for what in ("score rules", "dropout")]
    one_row = Padded(torch.tensor([3]), torch.tensor([2]))
    assert "several segments" in "".join(flash1.reasons_against(prepare(q, q, q, Settings(layout=one_row))))


@pytest.mark.parametrize("seed", [0, 2**31 - 1, 2**31, 2**31 + 5, 2**32 - 1, 2**32, 2**62])
def test_every_seed_drops_what_the_definition_drops(seed):
    q, k, v = torch.randn(3, 1, 1, 20, 8, generator=torch.Generator().manual_seed(3))
    ours, truth = (limelight.attention(q, k, v, dropout=0.5, seed=seed, backend=b) for b in ("flash2", "reference"))
    torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-4)
