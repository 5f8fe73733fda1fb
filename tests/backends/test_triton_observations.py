"""Observations of the Triton kernels, in Triton's interpreter, against the definition in float64."""

import pytest
import torch
from support.accuracy import check_close

import limelight
from limelight import ALiBi, Causal, Explicit, KeyMask, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends.gpu import flash2, machine
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter")

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
