"""Observations of the Triton kernels, in Triton's interpreter, against the definition in float64."""

import pytest
import torch
from support.accuracy import check_close

import limelight
from limelight import ALiBi, Bias, Causal, Explicit, KeyMask, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends.gpu import flash2, machine, observing, tuning
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

GENERATOR = torch.Generator().manual_seed(0)
MASK = torch.rand(2, 4, 21, 37, generator=GENERATOR) < 0.3
FORMS = {
    "causal": {"pattern": Causal()},
    "spans": {"pattern": Causal() & (Window(9, 0) | Keys(first=3)), "scores": (SoftCap(3.0),)},
    "tiles": {"pattern": Explicit(MASK), "sink": torch.tensor([0.5, -1.0, 2.0, 0.0])},
    "holes": {"layout": KeyMask(MASK[:, 0, 0])},
    "packed": {"layout": Packed((8, 0, 13), (7, 10, 20)), "scores": (ALiBi(torch.rand(4, generator=GENERATOR)),)},
    "padded": {"layout": Padded(torch.tensor([5, 20]), torch.tensor([37, 0])), "sink": torch.zeros(4)},
    "no visible key": {"pattern": ~Keys(first=99)},
}
# Those in which batch rows differ; each further row costs the interpreter the time of the first.
OF_ROWS = ("tiles", "holes", "padded")


def check(settings, dtype=torch.float32, B=2, Hq=4, Hkv=2, Lq=21, Lk=37, D=8, **observed):
    make = lambda h, n: torch.randn(B, h, n, D, generator=torch.Generator().manual_seed(n)).to(dtype)  # noqa: E731
    q, k, v = make(Hq, Lq), make(Hkv, Lk), make(Hkv, Lk)
    settings = settings | {"observe": Observe(**observed)}
    ours, plain, truth = (
        limelight.attention(q.to(t), k.to(t), v.to(t), backend=b, **settings)[1].seen()
        for b, t in (("flash2", dtype), ("reference", dtype), ("reference", torch.float64))
    )
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        if name in ("received_by", "block_pairs", "top_keys"):
            assert torch.equal(ours[name].expand_as(expected), expected), name
        else:
            check_close(ours[name], plain[name], expected, name, slack=16.0, size=1.0)


ROWS = {"logsumexp": True, "max_score": True, "max_weight": True, "entropy": True, "distance": True, "top": 3}


@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition(form):
    features = torch.randn(37, 5, generator=torch.Generator().manual_seed(1))
    check(
        FORMS[form], B=2 if form in OF_ROWS else 1,
        **ROWS, received=True, features=features, rows=(20, 3, 3), blocks=(8, 19),
        pairs=((0, 0), (20, 36), (3, 3), (20, 1)), heads=(2, 0),
    )  # fmt: skip


@pytest.mark.parametrize("form", ["spans", "tiles"])
def test_statistics_of_a_second_pass(form):
    """For a backend whose forward kernel does not compute them."""
    request = dict.fromkeys(("max_score", "max_weight", "entropy"), True)
    q, k = (torch.randn(2, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (21, 37))
    call = prepare(q, k, k, Settings(observe=Observe(**request), **FORMS[form]))
    result = flash2.forward(call)
    again = observing.observe(call, result.logsumexp, False).seen()
    for name, found in result.observations.seen().items():
        assert torch.allclose(again[name], found, atol=1e-5), name


@pytest.mark.parametrize(
    ("dtype", "D", "Lq", "Lk"),
    [
        (torch.float16, 8, 18, 33),
        (torch.float16, 33, 5, 19),
        (torch.float16, 80, 17, 17),
        (torch.float32, 80, 3, 18),
        (torch.float16, 160, 1, 20),
        (torch.float32, 300, 4, 9),
        (torch.float16, 512, 2, 17),
        (torch.float16, 64, 1, 1),
    ],
    ids=str,
)
def test_other_widths_lengths_and_half_precision(dtype, D, Lq, Lk):
    """All observations at once: of rows, keys, blocks, chosen rows and pairs, and features."""
    few = {"features": torch.randn(Lk, 2, generator=torch.Generator().manual_seed(1)), "blocks": (2, 7)}
    chosen = {"rows": (Lq - 1,), "pairs": ((Lq - 1, 0), (0, Lk - 1))}
    settings = {"pattern": Causal() & (Window(9, 0) | Keys(first=2)), "scores": (SoftCap(3.0),)}
    check(settings, dtype, 1, 2, 1, Lq, Lk, D, **ROWS, received=True, **few, **chosen)


def test_ties_go_to_the_lowest_key():
    q = torch.ones(1, 1, 20, 4)
    k = torch.randint(0, 2, (1, 1, 70, 4), generator=torch.Generator().manual_seed(0)).float()
    settings = {"pattern": Causal() & (Window(30, 0) | Keys(first=9)), "observe": Observe(top=9)}
    ours, truth = (limelight.attention(q, k, k, backend=b, **settings)[1] for b in ("flash2", "reference"))
    assert torch.equal(ours.top_keys, truth.top_keys)


@pytest.mark.parametrize("blocks", [(4, 4), (8, 16), (16, 8), (40, 64), (17, 40), (100, 100)], ids=str)
def test_blocks_of_any_size(blocks):
    """Several columns in a tile, one column in several tiles, blocks that two documents share, with and without the
    weight that keys receive."""
    settings = {"layout": Packed((20, 0, 21), (33, 5, 32)), "pattern": Causal() & Window(25, 0)}
    check(settings, B=1, Hq=2, Hkv=1, Lq=41, Lk=70, blocks=blocks, received=True)
    check({"pattern": Causal()}, torch.float16, B=1, Hq=2, Hkv=2, Lq=41, Lk=70, blocks=blocks)


@pytest.mark.parametrize("top", [1, 2, 20, 64])
def test_any_number_of_largest_weights(top):
    check({"pattern": Causal() & (Window(50, 0) | Keys(first=3))}, B=1, Hq=2, Hkv=1, Lq=33, Lk=90, top=top)


def test_of_weights_that_are_zero_the_lowest_key_comes_first():
    bias = torch.randn(1, 18, 50, generator=torch.Generator().manual_seed(0))
    bias[:, :9, 7] = 1e10  # all other weights of these rows are 0
    bias[:, 9:, 40:] = 300.0
    settings = {"scores": (Bias(bias),), "pattern": ~Keys(first=2), "observe": Observe(top=6)}
    q = torch.zeros(1, 1, 18, 8)
    k = torch.zeros(1, 1, 50, 8)
    ours, truth = (
        limelight.attention(q.to(t), k.to(t), k.to(t), backend=b, **settings)[1]
        for b, t in (("flash2", torch.float32), ("reference", torch.float64))
    )
    assert torch.equal(ours.top_keys, truth.top_keys)
    assert torch.allclose(ours.top_weights.double(), truth.top_weights, atol=1e-4)


def test_a_row_that_sees_nan_has_nan_and_no_other_row_has():
    q, k, v = (torch.randn(1, 2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (21, 50, 51))
    v = v[:, :, :50]
    k[:, :, 30] = torch.nan
    bias = torch.zeros(21, 50)
    bias[:, 3] = -torch.inf
    settings = {"pattern": Causal() & Window(12, 0), "scores": (Bias(bias),), "sink": torch.zeros(2)}
    ours, truth = (
        limelight.attention(q, k, v, backend=b, observe=Observe(**ROWS), **settings)[1].seen()
        for b in ("flash2", "reference")
    )
    broken = truth["entropy"].isnan()
    assert broken.any()
    assert not broken.all()
    for name, expected in truth.items():
        assert torch.equal(ours[name].isnan(), expected.isnan()), name
        assert torch.allclose(ours[name].double(), expected.double(), atol=1e-5, equal_nan=True), name
    received = Observe(received=True, blocks=(7, 16))
    ours = limelight.attention(q, k, v, backend="flash2", observe=received, **settings)[1]
    seen = (ours.received_by > 0).expand(1, 2, 50)
    assert (ours.received[~seen] == 0).all()
    touched = torch.tensor([bool(broken[0, 0, n : n + 7].any()) for n in range(0, 21, 7)])
    assert not ours.blocks[:, :, ~touched].isnan().any()
    assert ours.blocks[:, :, touched].isnan().any()


@pytest.mark.parametrize("form", ["sink", "one key", "documents", "dropout and a soft cap"])
def test_statistics_of_calls_whose_keys_are_split(form, monkeypatch):
    """Few queries and many keys: each part of the keys has its statistics, which are merged."""
    monkeypatch.setattr(machine, "processors", lambda device: 64)
    monkeypatch.setattr(tuning, "splits", lambda programs, processors, blocks: 3)
    settings = {
        "sink": {"pattern": Causal(), "sink": torch.tensor([0.5, -40.0, 60.0, 0.0])},
        "one key": {"pattern": Keys(first=1)},
        "documents": {"layout": Packed((1, 0, 3), (99, 7, 4)), "pattern": Causal()},
        "dropout and a soft cap": {"dropout": 0.3, "seed": 5, "scores": (SoftCap(2.0),)},
    }[form]
    check(settings, B=1, Lq=4, Lk=110, entropy=True, max_score=True, max_weight=True, logsumexp=True)
    check(settings, B=1, Lq=4, Lk=110, max_weight=True)


def test_statistics_of_large_scores():
    """Where a row's largest score needs a shift, in tiles that a rescue computes, and just below."""
    bias = torch.randn(4, 20, 40, generator=torch.Generator().manual_seed(0))
    bias[0] += 1e6
    bias[1, 3] += 3e8
    bias[2, :, 5] = 1e30
    bias[3, :, ::2] = -3e38
    rows = dict.fromkeys(("max_score", "max_weight", "entropy"), True)
    settings = {"scores": (Bias(bias),), "pattern": Causal(), "observe": Observe(**rows)}
    q, k = (torch.randn(1, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (20, 40))
    ours, truth = (
        limelight.attention(q.to(t), k.to(t), k.to(t), backend=b, **settings)[1].seen()
        for b, t in (("flash2", torch.float32), ("reference", torch.float64))
    )
    for name, rounded in (("max_score", 1e-6), ("max_weight", 3e-2), ("entropy", 3e-2)):
        small = truth[name][:, 2:] if name != "max_score" else truth[name]
        found = ours[name][:, 2:] if name != "max_score" else ours[name]
        assert torch.allclose(found.double(), small, rtol=1e-5, atol=1e-5), name
        # A score of 1e6 is rounded to 1/16.
        assert torch.allclose(ours[name].double(), truth[name], rtol=10 * rounded, atol=10 * rounded), name


def test_the_same_bits_on_repetition():
    q, k, v = (torch.randn(2, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (37, 41, 41))
    observe = Observe(**ROWS, received=True, blocks=(8, 8))
    first, second = (
        limelight.attention(q, k, v, pattern=Causal(), backend="flash2", observe=observe)[1].seen() for _ in range(2)
    )
    for name, found in first.items():
        assert torch.equal(found, second[name]), name


@pytest.mark.parametrize("name", ["entropy", "max_weight", "max_score"])
def test_a_statistic_alone_is_that_among_others(name):
    q, k, v = (torch.randn(1, 4, n, 8, generator=torch.Generator().manual_seed(n)) for n in (37, 41, 41))
    alone, among = (
        limelight.attention(q, k, v, pattern=Causal(), backend="flash2", observe=Observe(**request))[1].seen()[name]
        for request in ({name: True}, ROWS | {"received": True})
    )
    assert torch.equal(alone, among)


def test_entropy_has_its_gradient():
    leaves = [torch.randn(1, 1, n, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 9, 9)]

    def gradient(backend):
        q, k, v = (t.clone().requires_grad_() for t in leaves)
        limelight.attention(q, k, v, observe=Observe(entropy=True), backend=backend)[1].entropy.sum().backward()
        return q.grad

    assert torch.allclose(gradient("flash2"), gradient("reference"), atol=1e-6)


def test_too_many_top_weights_are_refused():
    q = torch.zeros(1, 1, 4, 8)
    assert "the 65 largest weights" in "".join(
        flash2.reasons_against(prepare(q, q, q, Settings(observe=Observe(top=65))))
    )
