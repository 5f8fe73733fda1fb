"""The source of `flash3`'s kernels on a machine of our own (`gluon_machine`), against the definition in float64."""

from contextlib import nullcontext

import pytest
import torch
from support.accuracy import check_close, rounded, steps
from support.gluon_machine import installed
from support.large_scores import by_definition, close
from support.strategies import Example

import limelight
from limelight import ALiBi, Aligned, Causal, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends.gpu import machine
from limelight.backends.gpu.hopper import flash3, flash3_float8, tuning
from limelight.backends.gpu.hopper.quantise import quantise, with_exponents
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

# The rescue is a Triton kernel.
pytestmark = pytest.mark.usefixtures("interpreter")

NAN, INF = float("nan"), float("inf")


def example_of(Hq=2, Hkv=1, Lq=150, Lk=300, D=64, Dv=64, B=1, **settings):
    generator = torch.Generator().manual_seed(Lq)
    q, k, v = (
        torch.randn(B, h, n, d, generator=generator, dtype=torch.float16).double()
        for h, n, d in ((Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv))
    )
    return Example(limelight.tensors.shapes.Shapes(B, Hq, Hkv, Lq, Lk, D, Dv), q, k, v, {"scale": None} | settings)


WAYS = {
    "flash3": lambda call: flash3.compute(call, None, tuning.MEASURED),
    "candidate": lambda call: flash3.compute(call, None, tuning.MEASURED | tuning.CANDIDATES),
    "flash3-float8": flash3_float8.forward,
}


def run(example, how="flash3", dtype=torch.float16, processors=3, change=("", "")):
    tensors = [t.to(dtype) for t in (example.query, example.key, example.value)]
    if how not in ("plain", "truth"):
        with installed(processors, change):
            result = WAYS[how](prepare(*tensors, Settings(**example.settings)))
        return result.output, result.logsumexp
    with rounded(dtype) if how == "plain" else nullcontext():
        out, seen = limelight.attention(
            *tensors, backend="reference", observe=Observe(logsumexp=True), **example.settings
        )
    return out, seen.logsumexp


def check(example, how="flash3", processors=3):
    ours, plain, truth = (
        run(example, how, processors=processors),
        run(example, "plain"),
        run(example, "truth", torch.float64),
    )
    check_close(ours[0], plain[0], truth[0], "output", steps(example), 3.0, torch.float16)
    check_close(ours[1], plain[1], truth[1], "logsumexp", steps(example), 1.0)


@pytest.mark.parametrize(
    "example",
    [
        example_of(),
        example_of(pattern=Causal(), D=128, Dv=128, sink=torch.tensor([9.0, -INF])),
        example_of(pattern=Causal(), Lq=300, B=2, layout=Aligned(0)),
        example_of(pattern=Causal() & (Window(70, 0) | Keys(first=3)), Lq=300, D=96, Dv=72),
        example_of(pattern=Causal(), layout=Packed((80, 0, 70), (140, 30, 130)), D=256, Dv=192, Hkv=2),
        example_of(pattern=Window(20, 20), layout=Padded(torch.tensor([150, 0, 7]), torch.tensor([30, 300, 0])), B=3),
        example_of(scores=(ALiBi(torch.rand(2)), SoftCap(5.0)), pattern=Causal(), scale=-0.2),
        example_of(pattern=~Causal(), Lq=100, Lk=64, layout=Aligned(0)),
        example_of(pattern=Causal(), Lq=300, D=192, Dv=192),
        example_of(pattern=Causal() & (Window(70, 0) | Keys(first=3)), D=136, Dv=72, sink=torch.tensor([0.5, 2.0])),
        example_of(pattern=Window(200, 9) | Keys(first=3), Lq=300, Lk=700, D=40, Hkv=2),
    ],
    ids=[
        "full",
        "sink",
        "causal",
        "two intervals",
        "packed",
        "padded",
        "rules",
        "blind rows",
        "two parts",
        "two parts of keys alone",
        "long intervals",
    ],
)
@pytest.mark.parametrize("how", ["flash3", "candidate"])
def test_forms(example, how):
    check(example, how)


@pytest.mark.parametrize("how", ["flash3", "candidate"])
@pytest.mark.parametrize("processors", [1, 2, 100])
def test_any_number_of_processors_gives_the_same_bits(processors, how):
    example = example_of(pattern=Causal(), Lq=270, B=2)
    assert torch.equal(run(example, how, processors=processors)[0], run(example, how, processors=4)[0])


def test_strides():
    example = example_of(pattern=Causal(), D=72, Dv=72)
    for name in ("query", "key", "value"):
        setattr(example, name, getattr(example, name).transpose(1, 2).contiguous().transpose(1, 2))
    check(example)


@pytest.mark.parametrize("how", ["flash3", "candidate"])
@pytest.mark.parametrize(("poison", "which"), [(NAN, "key"), (NAN, "value"), (INF, "value"), (-INF, "value")])
def test_what_is_not_seen_changes_nothing(poison, which, how):
    example = example_of(pattern=Causal() & Window(60, 0), layout=Aligned(0), D=160, Dv=160)
    before = run(example, how)[0]
    getattr(example, which)[0, 0, 130, 150] = poison
    after, truth = run(example, how)[0], run(example, "truth", torch.float64)[0]
    assert torch.equal(after.isfinite(), truth.isfinite())
    assert torch.equal(after[~truth.isfinite()].nan_to_num(7), truth[~truth.isfinite()].half().nan_to_num(7))
    seen = truth.isfinite()
    assert torch.allclose(before[seen].float(), after[seen].float(), rtol=2e-3, atol=2e-3)


LARGE = {
    "a steep slope": lambda: {"scores": (ALiBi(torch.tensor([1e8, 1e31])),), "layout": Aligned(400)},
    "a large scale": lambda: {"scale": 3e9, "pattern": Causal()},
    "a large negative scale": lambda: {"scale": -3e9, "sink": torch.tensor([1e10, -1e10])},
}


@pytest.mark.parametrize("how", ["flash3", "candidate", "flash3-float8"])
@pytest.mark.parametrize("case", LARGE)
def test_any_finite_score_gives_its_weight(case, how):
    example = example_of(2, 2, 70, 130, **LARGE[case]())
    half = [t.half() for t in (example.query, example.key, example.value)]
    output, logsumexp = run(example, how)
    expected, seen = by_definition(*half, half[0], {k: v for k, v in example.settings.items() if v is not None})
    close(output, expected["output"], "output", 2e-3)
    close(logsumexp, seen["logsumexp"], "logsumexp", 1e-5)


# Each is a race or a hang on a GPU: a buffer or a turn given away too early, or never.
AWAIT = "    acc = _wait_for_output(acc, words)\n"
GIVE_BACK = "    _read(2, t - 1, before, item, copied, buffers, bars, const, variant)\n"
MISTAKES = {
    "values are given back before they are read": (AWAIT + GIVE_BACK, GIVE_BACK + AWAIT),
    "scores are used while their product runs": ("1 if const.VALUE_REST == 0 else 2", "2"),
    "values are not waited for": ("    mbarrier.wait(bars[4]", "    (lambda *_: 0)(bars[4]"),
    "keys are not waited for": ("    mbarrier.wait(bars[2]", "    (lambda *_, **__: 0)(bars[2]"),
}  # fmt: skip
OF_ONE = {
    "some warps may still read what is refilled": ("gl.barrier()  # all four", "pass  #"),
    "keys of too late a step are copied": ("t + variant.STAGES, count", "t + variant.STAGES + 1, count"),
}


@pytest.mark.parametrize(
    ("mistake", "how"), [*((m, "flash3") for m in MISTAKES), *((m, "candidate") for m in MISTAKES | OF_ONE)]
)
def test_the_machine_notices(mistake, how, monkeypatch):
    right = run(example_of(Hq=1, Hkv=1, Lq=128, Lk=700), how, processors=1)[0]
    monkeypatch.setattr("support.gluon_machine.PATIENCE", 5.0)
    monkeypatch.setattr("support.gluon_machine.HESITATION", 0.05)
    try:
        change = (MISTAKES | OF_ONE)[mistake]
        wrong = run(example_of(Hq=1, Hkv=1, Lq=128, Lk=700), how, processors=1, change=change)[0]
    except AssertionError:
        return
    assert not torch.equal(wrong, right)


@pytest.mark.parametrize("table", [tuning.MEASURED, tuning.MEASURED | tuning.CANDIDATES], ids=["measured", "candidate"])
@pytest.mark.parametrize(
    "example",
    [
        example_of(pattern=Causal(), layout=Aligned(0), scale=3.0),
        example_of(pattern=Causal() & (Window(70, 0) | Keys(first=3)), Lq=300, sink=torch.tensor([2.0, -INF])),
        example_of(scores=(ALiBi(torch.rand(2)), SoftCap(5.0)), pattern=Causal(), scale=-0.2, D=192, Dv=128),
    ],
    ids=["causal", "sink", "rules"],
)
def test_statistics_of_rows(example, table):
    half = [t.half() for t in (example.query, example.key, example.value)]
    found = [torch.full(example.sizes.scores[:3], NAN) for _ in range(3)]
    for level in (2, 1):
        with installed():
            given = (found[0], found[1], found[2] if level == 2 else None)
            flash3.compute(prepare(*half, Settings(**example.settings)), None, table, given)
        _, seen = limelight.attention(
            *(t.double() for t in half), backend="reference",
            observe=Observe(max_score=True, max_weight=True, entropy=True), **example.settings,
        )  # fmt: skip
        for ours, truth in zip(found, (seen.max_score, seen.max_weight, seen.entropy), strict=True):
            torch.testing.assert_close(ours.double(), truth, rtol=1e-5, atol=1e-5)


# --- 8 bits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "example",
    [
        example_of(D=128, Dv=128),
        example_of(pattern=Causal(), Lq=300, B=2, sink=torch.randn(2), layout=Aligned(0)),
        example_of(pattern=Causal() & (Window(70, 0) | Keys(first=3)), Lq=300, D=96, Dv=72),
        example_of(pattern=Causal(), layout=Packed((80, 0, 70), (140, 30, 130)), D=256, Dv=192, Hkv=2),
        example_of(scores=(ALiBi(torch.rand(2)), SoftCap(5.0)), pattern=Causal(), scale=-0.2),
    ],
    ids=["full", "sink", "two intervals", "packed", "rules"],
)
def test_float8_equals_the_definition_on_what_its_numbers_stand_for(example):
    """A weight of 8 bits is off by at most 1/16 of itself, or 2^-10 of the smallest step; nothing else is rounded."""
    ours = run(example, "flash3-float8")
    q, k, v = (t.half() for t in (example.query, example.key, example.value))
    keys = tuning.FLOAT8[max(64, 1 << (max(q.shape[-1], v.shape[-1]) - 1).bit_length())].block
    small = quantise(q, k, v, keys)
    stands = lambda x, scales, rows: x.double() * scales.repeat_interleave(rows, 2)[:, :, : x.shape[2], None]  # noqa: E731
    q, k = stands(small.query, small.query_scales, 64), stands(small.key, small.key_scales, keys)  # rotated
    v8, exponents = with_exponents(v.float(), keys)
    meant = Example(example.sizes, q, k, stands(v8, exponents.exp2(), keys), dict(example.settings))
    meant.settings["scale"] = example.settings["scale"] or example.sizes.D**-0.5
    truth, lse = run(meant, "truth", torch.float64)
    meant.value = meant.value.abs()
    terms = run(meant, "truth", torch.float64)[0]
    allowed = terms / 16 + 2.0**-9 * meant.value.amax() + 2.0**-11 * truth.abs()
    assert bool(((ours[0].double() - truth).abs() <= allowed).all())
    assert torch.allclose(ours[1].double(), lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1e38, 1e-33, 1e-36])
def test_float8_of_values_near_the_ends_of_bfloat16(size):
    example = example_of(pattern=Causal())
    example.value = example.value.clamp(-3, 3) * size
    ours, truth = run(example, "flash3-float8", torch.bfloat16)[0], run(example, "truth", torch.float64)[0]
    assert torch.allclose(ours.double(), truth, rtol=0.2, atol=0.1 * size)


@pytest.mark.parametrize("spread", [2, 60])
def test_float8_of_values_far_below_others_of_the_head(spread, monkeypatch):
    """Further apart than ``SPREAD``, a block of values has no scale, and what sees it is computed again: rows before
    the large values are exact to 8 bits, or to 16."""
    monkeypatch.setattr("limelight.backends.gpu.hopper.quantise.SPREAD", spread)
    example = example_of(pattern=Causal(), Lq=256, Lk=256)
    example.value[:, :, :128] *= 2.0**-12
    example.value[:, :, 128:] *= 2.0**10
    ours, truth = run(example, "flash3-float8")[0], run(example, "truth", torch.float64)[0]
    for rows in (slice(0, 128), slice(128, 256)):
        size = truth[:, :, rows].abs().amax()
        assert ((ours.double() - truth)[:, :, rows].abs() <= 0.2 * truth[:, :, rows].abs() + 0.05 * size).all()


def test_float8_keeps_the_weights_of_small_values():
    """Queries that see a block of small values alone are as exact as others, whatever the size of later values."""
    example = example_of(pattern=Causal(), Lq=256, Lk=256)
    example.value[:, :, :128] *= 2.0**-12
    q, k, v = (t.half() for t in (example.query, example.key, example.value))
    assert tuning.FLOAT8[64].block == 128
    small = quantise(q, k, v, 128)
    assert (small.value_exponents[..., 1] - small.value_exponents[..., 0]).min() >= 11
    ours = run(example, "flash3-float8")[0].double()
    stands = lambda x, scales, rows: x.double() * scales.repeat_interleave(rows, 2)[..., None]  # noqa: E731
    q, k = stands(small.query, small.query_scales, 64), stands(small.key, small.key_scales, 128)
    v8, exponents = with_exponents(v.float(), 128)
    v = stands(v8, exponents.exp2(), 128)
    scale = example.sizes.D**-0.5
    truth, terms = (
        limelight.attention(q, k, x, backend="reference", scale=scale, pattern=Causal()) for x in (v, v.abs())
    )
    # Of a weight's 8 bits, of its smallest step, and of the output in float16.
    allowed = terms / 16 + 2.0**-18 * v.abs().cumsum(2) + 2.0**-11 * truth.abs() + 2.0**-25
    assert bool(((ours - truth).abs() <= allowed)[:, :, :128].all())
