"""Any finite score gives its weight in the Triton kernels, forward, backward and as observed."""

import pytest
import torch
from support.large_scores import FLOAT32_MIN, by_definition, close, tensors

import limelight
from limelight import ALiBi, Aligned, Bias, Causal, Explicit, Observe, RelativeBias
from limelight.backends.gpu import flash1, machine, tuning

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter")

Lq, Lk = 20, 90


def keys(first, number, rest=0.0):
    bias = torch.full((Lk,), rest)
    bias[:first] = number
    return bias


def rows(number):
    """Some queries have one number before every key."""
    bias = torch.zeros(Lq, Lk)
    bias[[3, 7, 19]] = number
    return bias


CASES = {
    **{f"{n:.3g} before the first keys": lambda n=n: {"scores": (Bias(keys(70, n)),)} for n in (-1e10, FLOAT32_MIN)},
    "-1e+30 before one key": lambda: {"scores": (Bias(keys(1, -1e30)),), "pattern": Causal()},
    **{
        f"{n:.3g} before all keys of a row": lambda n=n: {"scores": (Bias(rows(n)),)} for n in (-1e9, FLOAT32_MIN, 3e38)
    },
    **{f"a key raised by {n:.3g}": lambda n=n: {"scores": (Bias(keys(1, n)),)} for n in (1e10, 3e38)},
    "a sink among scores as large": lambda: {
        "scores": (Bias(rows(-1e10)),), "sink": torch.tensor([-1e10, 1e10]), "pattern": Causal(),
    },
    "a far window of a steep slope": lambda: {"scores": (ALiBi(torch.tensor([1e8, 1e31])),), "layout": Aligned(400)},
    "a table": lambda: {"scores": (RelativeBias(torch.tensor([[-1e10, 2e9] * 16])),)},
    "in a map of bits": lambda: {
        "scores": (Bias(rows(-1e30)),), "pattern": Explicit(torch.arange(Lq * Lk).reshape(Lq, Lk) % 3 > 0),
    },
}  # fmt: skip


def run(leaves, upstream, settings):
    leaves = [t.clone().requires_grad_() for t in leaves]
    if "sink" in settings:
        settings = settings | {"sink": settings["sink"].clone().requires_grad_()}
    observed = Observe(logsumexp=True, entropy=True, max_weight=True, max_score=True, received=True, rows=range(Lq))
    output, seen = limelight.attention(*leaves, backend="flash2", observe=observed, **settings)
    wanted = [*leaves, settings["sink"]] if "sink" in settings else leaves
    gradients = torch.autograd.grad(output, wanted, upstream)
    names = ("query", "key", "value", "sink")[: len(wanted)]
    return {"output": output.detach(), **dict(zip(names, gradients, strict=True))}, seen.seen()


def check(leaves, settings, tolerance=2e-5):
    upstream = torch.randn(leaves[0].shape, generator=torch.Generator().manual_seed(1)).to(leaves[0].dtype)
    found, seen = run(leaves, upstream, settings)
    expected, observed = by_definition(*leaves, upstream, settings)
    scale = abs(settings.get("scale", leaves[0].shape[-1] ** -0.5))
    terms = {"query": scale * leaves[1].abs().max().item(), "key": scale * leaves[0].abs().max().item()}
    for name, truth in expected.items():
        close(found[name], truth, name, tolerance, terms.get(name, 1.0))
    for name, truth in observed.items():
        close(seen[name].detach(), truth, name, 2e-5)


@pytest.mark.parametrize("case", CASES)
def test_any_finite_score_gives_its_weight(case):
    check(tensors(Lq, Lk), CASES[case]())


@pytest.mark.parametrize("case", ["-1e+10 before the first keys", "-1e+09 before all keys of a row"])
def test_in_half_precision(case):
    check(tensors(Lq, Lk, dtype=torch.float16), CASES[case](), 4e-3)


@pytest.mark.parametrize("factor", [1e10, 1e30])
def test_large_queries(factor):
    query, key, value = tensors(Lq, Lk)
    check([query * factor, key, value], {"pattern": Causal()}, 1e-4)


@pytest.mark.parametrize("scale", [-3e9, 3e9])
def test_large_scales(scale):
    check(tensors(Lq, Lk), {"scale": scale}, 1e-4)


@pytest.mark.parametrize(
    "case", ["-3.4e+38 before the first keys", "-1e+09 before all keys of a row", "a sink among scores as large"]
)
def test_keys_in_parts(case, monkeypatch):
    """Parts of one large score each are merged by how many keys have it."""
    settings = CASES[case]()
    if "pattern" in settings:
        settings["layout"] = Aligned(80)
    monkeypatch.setattr(tuning, "splits", lambda programs, processors, blocks: 3)
    query, key, value = tensors(Lq, Lk)
    out, seen = limelight.attention(query, key, value, backend="flash2", observe=Observe(logsumexp=True), **settings)
    expected, observed = by_definition(query, key, value, query, settings)
    close(out, expected["output"], "output", 2e-5)
    close(seen.logsumexp, observed["logsumexp"], "logsumexp", 2e-5)


def test_gradients_of_biases():
    bias = rows(-1e10)
    bias[:, :40] -= 1e30
    leaves, upstream = tensors(Lq, Lk), tensors(Lq, Lk)[0]
    bias, table = bias.requires_grad_(), torch.zeros(1, 32, requires_grad=True)
    settings = {"scores": (Bias(bias), RelativeBias(table))}
    output = limelight.attention(*leaves, backend="flash2", **settings)
    of_bias, of_table = torch.autograd.grad(output, (bias, table), upstream)
    expected, observed = by_definition(*leaves, upstream, {"scores": (Bias(bias.detach()),)})
    weights, v, g = observed["rows"], leaves[2].double(), upstream.double()
    ds = weights * (g @ v.mT - (g * expected["output"]).sum(-1, keepdim=True))
    close(of_bias, ds.sum((0, 1)), "bias", 2e-5)
    distances = torch.arange(Lk) - torch.arange(Lq)[:, None] - (Lk - Lq)
    buckets = RelativeBias(table).buckets(distances).flatten()
    close(of_table[0], torch.zeros(32).double().index_add(0, buckets, ds.sum((0, 1)).flatten()), "table", 2e-5)


def test_rows_beside_large_scores_keep_their_bits():
    leaves = tensors(Lq, Lk)
    outputs = [limelight.attention(*leaves, scores=(Bias(rows(n)),), backend="flash2") for n in (0.0, -1e10)]
    same = torch.ones(Lq, dtype=torch.bool)
    same[[3, 7, 19]] = False
    assert torch.equal(outputs[0][:, :, same], outputs[1][:, :, same])


@pytest.mark.parametrize("factor", [1e10, 1e30])
def test_the_first_algorithm(factor):
    query, key, value = tensors(Lq, Lk)
    call = limelight.attention(query * factor, key, value, pattern=Causal(), backend=flash1.NAME)
    close(call, by_definition(query * factor, key, value, query, {"pattern": Causal()})[0]["output"], "output", 2e-5)
