"""The source of `flash3`'s backward kernel on a machine of our own (`gluon_machine`), against the definition."""

import itertools

import pytest
import torch
from support.accuracy import check_close, rounded_gradients
from support.gluon_machine import installed
from support.large_scores import by_definition as by_definition_of_large
from support.large_scores import close

import limelight
from limelight import ALiBi, Aligned, Causal, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.backends.gpu import machine
from limelight.backends.gpu.hopper import flash3, gradients, sections, tuning
from limelight.forms.settings import Settings
from limelight.operator import derivatives
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

# The rescue and the sums of each query are Triton kernels.
pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

NAN, INF = float("nan"), float("inf")


def tensors_of(Hq=2, Hkv=1, Lq=100, Lk=200, D=64, Dv=64, B=1):
    """Query, key, value, and gradients of the output and of the logsumexp: numbers of float16, in float64."""
    generator = torch.Generator().manual_seed(Lq + Lk)
    shapes = (B, Hq, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv), (B, Hq, Lq, Dv), (B, Hq, Lq)
    return [torch.randn(*shape, generator=generator, dtype=torch.float16).double() for shape in shapes]


def by_definition(tensors, dtype, settings):
    """Output, logsumexp, and the gradients of query, key, value and operands."""
    call = prepare(*tensors[:3], Settings(**settings))
    leaves = [t.to(dtype).requires_grad_() for t in tensors[:3]]
    extra = [t for t in call.operands if t.requires_grad]
    out, seen = limelight.attention(*leaves, backend="reference", observe=Observe(logsumexp=True), **settings)
    finite = torch.where(seen.logsumexp.isfinite(), seen.logsumexp, 0.0)
    (out * tensors[3].to(dtype)).double().sum().add((finite * tensors[4]).double().sum()).backward()
    found = [leaf.grad for leaf in (*leaves, *extra)]
    for t in extra:
        t.grad = None
    return out.detach(), seen.logsumexp.detach(), found


def run(tensors, settings, processors=3, change=("", ""), wanted=None):
    """The gradients by our kernels, from the output and the logsumexp of the definition."""
    half = [t.half() for t in tensors[:4]]
    with torch.no_grad():
        out, seen = limelight.attention(*half[:3], backend="reference", observe=Observe(logsumexp=True), **settings)
    of_logsumexp = torch.where(seen.logsumexp.isfinite(), tensors[4].float(), 0.0)
    call = prepare(*half[:3], Settings(**settings))
    with installed(processors, change):
        wanted = wanted or (True,) * 3 + tuple(t.requires_grad for t in call.operands)
        return flash3.backward(call, out, seen.logsumexp, half[3], of_logsumexp, wanted)


def check(tensors, processors=3, **settings):
    ours = [g for g in run(tensors, settings, processors) if g is not None]
    with rounded_gradients(torch.float16):
        plain = by_definition(tensors, torch.float16, settings)[2]
    truth = by_definition(tensors, torch.float64, settings)[2]
    names = ["query", "key", "value", *(f"operand {n}" for n in range(len(truth) - 3))]
    for name, x, y, z in zip(names, ours, plain, truth, strict=True):
        check_close(x, y, z, name, slack=16.0, dtype=torch.float16)


def leaf(*numbers):
    return torch.tensor(numbers, dtype=torch.float32, requires_grad=True)


FORMS = {
    "full": ({}, {}),
    "causal": ({"D": 128, "Dv": 128, "Lq": 150}, {"pattern": Causal(), "sink": leaf(0.5, -INF)}),
    "groups": ({"Hq": 6, "Hkv": 2, "B": 2, "Lq": 130, "Lk": 130}, {"pattern": Causal()}),
    "window": ({"Lq": 250, "Lk": 250}, {"pattern": Causal() & Window(150, 0), "layout": Aligned(0)}),
    "two intervals": (
        {"Lq": 200, "Lk": 200, "D": 96, "Dv": 72},
        {"pattern": Causal() & (Window(70, 0) | Keys(first=3))},
    ),
    "four intervals": (
        {"Lq": 90, "Lk": 150},
        {"pattern": (Window(30, 9) & ~Window(4, 2)) | Keys(first=1), "layout": Aligned(9)},
    ),
    "packed": (
        {"Hkv": 2, "Lq": 150, "Lk": 300},
        {"pattern": Causal(), "layout": Packed((80, 0, 70), (140, 30, 130))},
    ),
    "padded": (
        {"B": 3, "Lq": 90},
        {"pattern": Window(20, 20), "layout": Padded(torch.tensor([90, 0, 7]), torch.tensor([30, 200, 0]))},
    ),
    "rules": (
        {"Lq": 90},
        {"scores": (ALiBi(leaf(0.3, 0.1)), SoftCap(5.0)), "pattern": Causal(), "scale": -0.2},
    ),
    "blind rows": ({"Lk": 64}, {"pattern": ~Causal(), "layout": Aligned(0)}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form):
    sizes, settings = FORMS[form]
    check(tensors_of(**sizes), **settings)


WIDE = {
    "full": ({"Lq": 70, "Lk": 140, "D": 192, "Dv": 64}, {}),
    "groups": ({"Hq": 4, "Hkv": 2, "Lq": 150, "Lk": 150, "D": 64, "Dv": 256}, {"pattern": Causal()}),
    "packed": (
        {"Hkv": 2, "Lq": 150, "Lk": 300, "D": 256, "Dv": 256},
        {"pattern": Causal(), "layout": Packed((80, 0, 70), (140, 30, 130))},
    ),
    "window": ({"Lq": 150, "Lk": 150, "D": 256, "Dv": 200}, {"pattern": Causal() & Window(70, 0)}),
}  # fmt: skip


@pytest.mark.parametrize("form", WIDE)
def test_forms_of_wide_heads(form, monkeypatch):
    """Three launches: the owner of queries, of keys, and of values."""
    monkeypatch.setattr(tuning, "WIDEST_BACKWARD", 256)
    monkeypatch.setattr(gradients.gradients, "launch_owners", None)
    sizes, settings = WIDE[form]
    check(tensors_of(**sizes), **settings)


@pytest.mark.parametrize("case", ["a steep slope", "large scores alike"])
def test_any_finite_score_gives_its_weight(case):
    """Tiles of a row whose largest score is too large for one fused operation are computed again."""
    tensors = tensors_of(Hq=2, Hkv=2, Lq=70, Lk=130)
    tensors[4].zero_()
    if case == "a steep slope":
        settings = {"scores": (ALiBi(torch.tensor([1e8, 1e31])),), "layout": Aligned(400), "scale": 0.1}
    else:  # 2.56e9 each: all that a query sees weighs the same
        settings = {"scale": 1e3, "pattern": Causal(), "sink": torch.tensor([2.56e9, -1e10])}
        tensors[0].fill_(200.0)
        tensors[1].fill_(200.0)
    ours = run(tensors, settings)
    truth, _ = by_definition_of_large(*(t.half() for t in tensors[:4]), settings)
    terms = settings["scale"] * tensors[0].abs().max().item()
    close(ours[0], truth["query"], "query", 2e-3, terms)
    close(ours[2], truth["value"], "value", 2e-3)
    if case == "a steep slope":  # the other is more than float16 holds
        close(ours[1], truth["key"], "key", 2e-3, terms)


def test_any_number_of_processors_gives_the_same_bits():
    tensors, settings = tensors_of(Hq=2, Hkv=2, Lq=200, Lk=200), {"pattern": Causal()}
    for found in zip(*(run(tensors, settings, processors) for processors in (1, 3, 100)), strict=True):
        assert all(torch.equal(x, found[0]) for x in found)


SECTIONS = [(128, 16, 3, 0.95), (32, 64, 12, 0.9), (24, 40, 8, 0.85)]


@pytest.mark.parametrize(("tiles", "columns", "limit", "least"), SECTIONS)
def test_sections_divide_causal_items_evenly(tiles, columns, limit, least):
    """The loads of 132 programs, from the dealing that the kernels compute themselves."""
    from support.gluon_machine import kernels

    names = kernels()
    section = sections.balanced_section(tiles, columns, 132, limit, 1)

    def loads(section):
        found = []
        for program in range(132):
            numbers = (int(names["item_number"](n, torch.tensor(program), 132)) for n in range(tiles * columns))
            mine = itertools.takewhile(lambda number: number < tiles * columns, numbers)
            items = (names["tile_and_column"](torch.tensor(n), tiles, columns, section)[0] for n in mine)
            found.append(sum(2 * (tiles - int(tile)) + 3 for tile in items))
        return found

    ours, before = loads(section), loads(limit)
    assert sum(ours) == sum(before)
    assert max(ours) <= max(before)
    assert sum(ours) / 132 / max(ours) >= least


def test_strides():
    tensors = tensors_of(D=72, Dv=72)
    strided = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in tensors[:4]]
    check([*strided, tensors[4]], pattern=Causal())
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    check([*tensors[:3], one.expand(tensors[3].shape), tensors[4]], pattern=Causal())


def test_what_is_not_wanted_is_not_computed(monkeypatch):
    asked = []
    launch = gradients.launch_owner
    monkeypatch.setattr(gradients, "launch_owner", lambda *args: asked.append(len(args[8])) or launch(*args))
    tensors = tensors_of(Lq=64, Lk=64)
    for wanted, expected in (((True, False, False), [0]), ((False, False, True), [3]), ((False, False, False), [])):
        asked.clear()
        found = run(tensors, {}, wanted=wanted)
        assert tuple(g is not None for g in found) == wanted
        assert asked == expected


@pytest.mark.parametrize("where", ["query", "key", "value", "gradient"])
def test_what_is_not_seen_changes_nothing(where):
    """NaN in one token reaches the gradients of the tokens that see it or that it sees, and no others."""
    tensors = tensors_of(Hq=1, Lq=150, Lk=150)
    settings = {"pattern": Causal() & Window(9, 0)}
    before = run(tensors, settings)
    tensors[("query", "key", "value", "gradient").index(where)][0, 0, 70] = NAN
    after = run(tensors, settings)
    # Token 70 as a query sees keys 61 to 70; as a key it is seen by queries 70 to 79, which see keys 61 to 79.
    as_query = where in ("query", "gradient")
    touched = (
        (slice(70, 71), slice(61, 71), slice(61, 71)) if as_query else (slice(70, 80), slice(61, 80), slice(61, 80))
    )
    for x, y, rows in zip(before, after, touched, strict=True):
        same = torch.ones(x.shape, dtype=torch.bool)
        same[0, 0, rows] = False
        assert torch.allclose(x[same].float(), y[same].float(), rtol=2e-3, atol=2e-3)
    assert after[0][0, 0, touched[0]].isnan().all()


@pytest.mark.parametrize("D", [192, 256])
def test_wide_heads_take_the_kernels_of_flash2(D, monkeypatch):
    monkeypatch.setattr(flash3, "launch_owners", None)
    check(tensors_of(Hq=1, Lq=64, Lk=70, D=D, Dv=64), pattern=Causal())


def test_it_says_whose_gradients_they_are(monkeypatch):
    def explained(D, **settings):
        q = torch.zeros(1, 2, 128, D, dtype=torch.float16)
        return derivatives.explain(prepare(q, q, q, Settings(**settings)), flash3)

    assert explained(128).startswith("gradients by flash3, others from the definition")
    assert explained(64, scores=(ALiBi(torch.ones(2)),)).startswith("gradients by flash3, others")
    assert "those of queries and slopes by the kernel of flash2" in explained(64, scores=(ALiBi(leaf(1.0, 1.0)),))
    assert explained(192).startswith("gradients by the kernels of flash2 (flash3: the head width is 192; its")
    monkeypatch.setattr(tuning, "WIDEST_BACKWARD", 256)
    assert explained(192).startswith("gradients by flash3, others")
    assert "with one interval of keys per query" in explained(192, pattern=Window(9, 9) | Keys(first=1))
    assert "without score rules" in explained(192, scores=(SoftCap(5.0),))


# Each is a race on a GPU, or a hang: a buffer given away too early, or used before it is full.
READ = (
    "        if kind.OF_FIRST:\n            of_first = warpgroup_mma_wait(0, deps=(of_first,))\n"
    "            keep_alive(ds)\n",
    "        mbarrier.arrive(first_empty.index(stage))\n",
)
CARRIED = (
    "            y, of_first = warpgroup_mma_wait(1 if kind.OF_SECOND else 0, deps=(y, of_first))\n"
    "            keep_alive(ds)\n",
    "            mbarrier.arrive(first_empty.index(before))\n",
)
MISTAKES = {
    "queries are given back before they are read": (READ[0] + READ[1], READ[1] + READ[0]),
    "carried queries are given back before they are read": (CARRIED[0] + CARRIED[1], CARRIED[1] + CARRIED[0]),
    "scores are used while their product runs": (
        "x = warpgroup_mma_wait(1 if kind.OF_FIRST else 0, deps",
        "x = warpgroup_mma_wait(2, deps",
    ),
    "gradients of the output are not waited for": (
        "    mbarrier.wait(second_full.index(second_stage), (count // kind.SECOND_STAGES) & 1)\n",
        "",
    ),
    "the bounds of a block are not counted": ("always + BOUNDS * bounds.nbytes_per_cta", "always"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_machine_notices(mistake, monkeypatch):
    width = 128 if mistake.startswith("queries") else 64  # whose owner of keys carries nothing
    tensors = tensors_of(Hq=1, Lq=300, Lk=100, D=width, Dv=width)
    right = run(tensors, {}, processors=1)
    monkeypatch.setattr("support.gluon_machine.PATIENCE", 1.0)
    monkeypatch.setattr(
        "support.gluon_machine.COPYING" if "not" in mistake else "support.gluon_machine.HESITATION", 0.03
    )
    try:
        wrong = run(tensors, {}, processors=1, change=MISTAKES[mistake])
    except (AssertionError, AttributeError, ValueError):
        return
    assert not all(torch.equal(x, y) for x, y in zip(wrong, right, strict=True))
