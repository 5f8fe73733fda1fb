"""Keys and values of 8 bits: their rounding, and attention over them, against the definition over the dense ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.accuracy import check_close, check_logsumexp, rounded, steps
from support.kernels import SIZES, every_kernel, same_bits, selected, threads
from support.pages import observed, paged_calls
from support.strategies import Example, examples

import limelight
from limelight import ArgumentError, Causal, Keys, Observe, Paged, Quantized, Window
from limelight.backends import native
from limelight.forms.quantized import LARGEST, hadamard
from limelight.fused import quantise
from limelight.operator.calling import prepare

F64 = torch.float64
KINDS = tuple(LARGEST)
some = settings(max_examples=settings.default.max_examples // 10)
KIND = st.sampled_from(KINDS)


def rows(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# --- Rounding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotate", [False, True])
def test_rounds_each_row_to_the_nearest(kind, rotate):
    x = rows(2, 3, 5, 24, dtype=F64) * rows(2, 3, 5, 1, seed=1).exp()
    found = Quantized.of(x, kind, rotate=rotate)
    turned = hadamard(x) if rotate else x
    assert torch.equal(found.scale, turned.abs().amax(-1, keepdim=True) / LARGEST[kind])
    numbers = torch.arange(256, dtype=torch.uint8).view(kind).to(F64)
    numbers = numbers[numbers.isfinite() & (numbers.abs() <= LARGEST[kind])]
    error = (turned / found.scale - found.data.to(F64)).abs()
    nearest = (turned / found.scale)[..., None].sub(numbers).abs().amin(-1)
    assert torch.allclose(error, nearest, rtol=0, atol=1e-5 * LARGEST[kind])
    assert torch.allclose(found.dense(F64), hadamard(found.data.to(F64) * found.scale) if rotate else
                          found.data.to(F64) * found.scale)  # fmt: skip


@pytest.mark.parametrize("width", [1, 2, 12, 64, 80, 96, 128])
def test_the_rotation_is_a_symmetric_orthogonal_matrix(width):
    H = hadamard(torch.eye(width, dtype=F64))
    assert torch.allclose(H @ H.mT, torch.eye(width, dtype=F64))
    assert torch.equal(H, H.mT)
    size = width & -width
    assert torch.allclose(
        H.abs().unique(), torch.tensor([0.0, size**-0.5] if size < width else [size**-0.5], dtype=F64)
    )


def test_rows_of_zeros_and_rows_that_are_not_finite():
    x = rows(1, 1, 4, 8)
    x[0, 0, 0], x[0, 0, 1, 3], x[0, 0, 2, 0] = 0, torch.nan, torch.inf
    for kind in KINDS:
        dense = Quantized.of(x, kind).dense()
        assert (dense[0, 0, 0] == 0).all()
        assert dense[0, 0, 1:3].isnan().all()
        assert dense[0, 0, 3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_native_library_rounds_to_the_same_bits(dtype, kind):
    for D, rotate in ((64, False), (64, True), (40, True), (7, False), (7, True), (128, True)):
        x = (rows(2, 3, 50, D) * rows(2, 3, 50, 1, seed=1).mul(3).exp()).to(dtype)
        x[0, 0, 3], x[0, 1, 2, 0], x[1, 1, 1, 0] = 0, torch.inf, torch.nan
        x[1, 0, 0] *= 1e-38
        plain = Quantized.of(x, kind, rotate=rotate)
        for isa in native.instruction_sets():
            if isa == "wide" and dtype is not torch.float32:
                continue
            with selected(isa):
                ours = quantise(x, kind, rotate)
            assert torch.equal(ours.data.view(torch.int8), plain.data.view(torch.int8)), isa
            assert same_bits(ours.scale, plain.scale), isa


# --- Attention --------------------------------------------------------------------------------------------------------


def eight_bits(draw, example: Example):
    """Keys and values of a call in 8 bits; where no query looks they may be NaN already."""
    kind, rotate = draw(KIND), draw(st.booleans())
    return [Quantized.of(x.nan_to_num(0, 0, 0), kind, rotate=rotate) for x in (example.key, example.value)]


def plainly(query, key, value, how, dtype):
    """The plain computation in ``dtype``: where keys and values are rotated, queries and outputs are."""
    if not key.rotated:
        return limelight.attention(query, key.dense(dtype), value.dense(dtype), **how)
    query, number = hadamard(query.to(key.scale.dtype)).to(dtype), key.scale.dtype
    keys, values = (Quantized.trusted(x.data, x.scale, False).dense(dtype) for x in (key, value))
    output, seen = limelight.attention(query, keys, values, **how)
    return hadamard(output.to(number)).to(dtype), seen


def judged(ours, example, key, value, settings, dtype):
    """Output and logsumexp of a call, by the rule of `accuracy`, against the definition over dense keys and values."""
    seen = Observe(logsumexp=True)
    how = settings | {"observe": seen, "backend": "reference"}
    with rounded(dtype):
        plain = plainly(example.query, key, value, how, dtype)
    truth = limelight.attention(example.query.double(), key.dense(F64), value.dense(F64), **how)
    terms = limelight.attention(example.query.double(), key.dense(F64), value.dense(F64).abs(), **how)[0].nan_to_num()
    dense = Example(example.sizes, example.query, key.dense(F64), value.dense(F64), settings)
    # Rotated queries and outputs are rounded once more than those of dense keys.
    slack, size = 2 * steps(dense), 2 * terms.max().item() if terms.numel() else 0.0
    check_close(ours[0], plain[0], truth[0], "output", slack, size, dtype)
    check_logsumexp(dense, ours[1].logsumexp, plain[1].logsumexp, truth[1].logsumexp, slack)


@every_kernel
@some
@given(data=st.data())
def test_equals_the_definition_over_dense_keys(kernel, data):
    isa, dtype = kernel
    example = data.draw(examples(SIZES, dtype=dtype, depth=1))
    key, value = eight_bits(data.draw, example)
    with selected(isa):
        ours = limelight.attention(
            example.query, key, value, observe=Observe(logsumexp=True), backend="native", **example.settings
        )
        again = limelight.attention(example.query, key, value, backend="native", **example.settings)
    assert same_bits(ours[0], again), "observing changes bits"
    judged(ours, example, key, value, example.settings, dtype)


@every_kernel
@some
@given(data=st.data())
def test_pages(kernel, data):
    """Slots without a key are NaN."""
    isa, dtype = kernel
    call = data.draw(paged_calls(dtype, (16, 32, 48, 64)))
    kind, rotate = data.draw(KIND), data.draw(st.booleans())
    key, value = (Quantized.of(x, kind, rotate=rotate) for x in (call.key, call.value))
    of_rows = [Quantized.of(x, kind, rotate=rotate) for x in (call.rows.key, call.rows.value)]
    paged = call.rows.settings | {"layout": call.layout}
    with selected(isa):
        ours = limelight.attention(
            call.rows.query, key, value, observe=Observe(logsumexp=True), backend="native", **paged
        )
    judged(ours, call.rows, *of_rows, call.rows.settings, dtype)
    plain = limelight.attention(call.rows.query, key, value, backend="reference", **paged)
    dense = limelight.attention(
        call.rows.query, *(x.dense(dtype) for x in of_rows), backend="reference", **call.rows.settings
    )
    assert same_bits(plain, dense)


LONG = {
    "decoding": (9, 3, 1, 1100, 64, 64),
    "group": (8, 1, 1, 9000, 128, 64),
    "several": (4, 2, 5, 700, 40, 72),
    "prompt": (4, 2, 70, 300, 64, 20),
}


@every_kernel
@pytest.mark.parametrize("sizes", LONG.values(), ids=LONG)
@pytest.mark.parametrize("kind", KINDS)
def test_long_keys_and_hidden_nan(kernel, sizes, kind):
    """Several chunks of keys, rows of zeros, large and small ones; scales of NaN where no query looks, and in one row
    that some queries see.
    """
    isa, dtype = kernel
    Hq, Hkv, Lq, Lk, D, Dv = sizes
    q, k, v = (rows(2, *shape, seed=n) for n, shape in enumerate([(Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv)]))
    k[:, :, 3], v[:, :, 5], v[:, :, 9] = 0, 0, v[:, :, 9] * 1e4
    q, k, v = (x.to(dtype) for x in (q, k, v))
    k[0, :, 0], v[0, :, 1] = torch.nan, torch.nan
    k[1, 0, Lk - 2, 1] = torch.nan
    example = Example(prepare(q, k, v).shapes, q, k, v, {"scale": None})
    for rotate in (False, True):
        key, value = (Quantized.of(x, kind, rotate=rotate) for x in (k, v))
        how = {"pattern": Causal() & Window(Lk - Lq - 2, 0), "scale": None, "scores": ()}
        with selected(isa):
            ours = limelight.attention(q, key, value, observe=Observe(logsumexp=True), backend="native", **how)
            with threads(3):
                again = limelight.attention(q, key, value, backend="native", **how)
            assert same_bits(ours[0], again), "threads change bits"
            alone = limelight.attention(
                q[1:, -Hq // Hkv :], *(x.map(lambda t: t[1:, -1:]) for x in (key, value)), backend="native", **how
            )
            assert same_bits(ours[0][1:, -Hq // Hkv :], alone), "other rows change bits"
        assert not ours[0][0].isnan().any()
        judged(ours, example, key, value, how, dtype)


@some
@given(data=st.data())
def test_observations(data):
    call = data.draw(paged_calls(torch.float32, (16, 32), dropout=False))
    observe = data.draw(observed(call.rows.sizes))
    key, value = (Quantized.of(x, "int8") for x in (call.rows.key, call.rows.value))
    how = call.rows.settings | {"observe": observe}
    ours = limelight.attention(call.rows.query, key, value, backend="native", **how)[1].seen()
    dense = limelight.attention(call.rows.query, key.dense(), value.dense(), backend="native", **how)[1].seen()
    for name, expected in dense.items():
        if name != "top_keys":  # equal weights may be ranked otherwise
            assert torch.allclose(ours[name].double(), expected.double(), rtol=1e-3, atol=1e-4, equal_nan=True), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_scales(dtype):
    """Keys and values of 1e-15 and of 1e15, and queries that make up for it."""
    for size in (1e-15, 1e15):
        q, k, v = rows(1, 4, 1, 64) / size, rows(1, 2, 600, 64, seed=1) * size, rows(1, 2, 600, 64, seed=2) * size
        q, key, value = q.to(dtype), Quantized.of(k, "int8", rotate=True), Quantized.of(v, "int8", rotate=True)
        ours = limelight.attention(q, key, value, backend="native")
        truth = limelight.attention(q.double(), key.dense(F64), value.dense(F64), backend="reference")
        assert (ours.double() - truth).abs().max() < 3 * torch.finfo(dtype).eps * v.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rotate", [False, True])
def test_queries_whose_products_with_the_bytes_would_overflow(kind, rotate):
    """The bytes are up to 57344 whatever the key is: their sum with a query of 1e33 is infinite, the score is not."""
    k, v = rows(1, 2, 600, 64, seed=1), Quantized.of(rows(1, 2, 600, 64, seed=2), kind, rotate=rotate)
    for exponent in (20, 30, 32, 33, 35, 37):
        for factor in (1.0, 1e-3, 1e3):
            q, key = rows(1, 4, 2, 64) * 10.0**exponent / factor, Quantized.of(k / 10.0**exponent, kind, rotate=rotate)
            if not q.isfinite().all():
                continue
            ours = limelight.attention(q, key, v, scale=factor)
            truth = limelight.attention(q.double(), key.dense(F64), v.dense(F64), scale=factor, backend="reference")
            assert (ours.double() - truth).abs().max() < 1e-5, (exponent, factor)
            read = limelight.explain(q, key, v, scale=factor).eight_bits.startswith(f"{kind}".removeprefix("torch."))
            assert read or exponent > 20, (exponent, factor)
    q = q.clone()
    q[0, 0, 0, 0] = torch.nan  # of one query alone
    found = limelight.attention(q, key, v, scale=factor)
    assert found[0, 0, 0].isnan().all()
    assert torch.equal(found[0, 1:].isnan(), torch.zeros(3, 2, 64, dtype=torch.bool))


# --- Which backends read 8 bits, and what is refused ------------------------------------------------------------------


def test_other_comparisons_mixtures_and_backends_take_dense_keys():
    q, k, v = rows(3, 2, 4, 9, 16).unbind()
    k8, v8 = Quantized.of(k, "int8", rotate=True), Quantized.of(v, "int8", rotate=True)
    dense = limelight.attention(q, k8.dense(), v8.dense(), backend="reference")
    assert torch.equal(limelight.attention(q, k8, v8, backend="reference"), dense)
    assert torch.allclose(limelight.attention(q, k8, v8.dense()), dense, atol=1e-5)
    assert torch.allclose(limelight.attention(q[0], *(x.map(lambda t: t[0]) for x in (k8, v8))), dense[0], atol=1e-5)
    compare = limelight.Additive(rows(16))
    ours = limelight.attention(q, k8, v8, compare=compare)
    assert torch.allclose(ours, limelight.attention(q, k8.dense(), v8.dense(), compare=compare), atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert limelight.attention(q, k8, v8).dtype is torch.bfloat16
    with limelight.watching(Observe(entropy=True)) as seen:
        limelight.attention(q, k8, v8, name="layer")
    assert seen["layer"].entropy.shape == (2, 4, 9)


def test_what_explain_says():
    q, k = rows(1, 4, 1, 16), rows(1, 4, 32, 16)
    k8, rotated = Quantized.of(k), Quantized.of(k, rotate=True)
    assert limelight.explain(q, k8, k8).eight_bits == "int8, read as they lie"
    assert "reference reads no keys of 8 bits" in limelight.explain(q, k8, k8, backend="reference").eight_bits
    assert "key and value differ in dtype or rotation" in limelight.explain(q, k8, rotated).eight_bits
    assert "key and value differ" in str(limelight.explain(q, k8, k))
    pages = [x.map(lambda t: t.reshape(1, 4, 2, 16, -1)[0].transpose(0, 1)) for x in (k8, k8)]
    found = limelight.explain(q, *pages, layout=Paged((1,), (32,), [[0, 1]]))
    assert (found.eight_bits, found.pages) == ("int8, read as they lie", "read in place, 16 keys in each")
    assert limelight.explain(q, k, k).eight_bits == ""


def test_gradients_are_refused():
    q, k8 = rows(1, 2, 3, 8).requires_grad_(), Quantized.of(rows(1, 2, 3, 8))
    with pytest.raises(ArgumentError, match="has no derivatives where it is Quantized"):
        limelight.attention(q, k8, k8)
    with pytest.raises(ArgumentError, match="has no derivatives"):
        limelight.explain(q, k8, k8)
    with torch.no_grad():
        limelight.attention(q, k8, k8)
    with pytest.raises(ArgumentError, match="rounded, which has no gradient"):
        Quantized.of(q)
    scaled = Quantized(k8.data, k8.scale.clone().requires_grad_())
    for key, value in ((scaled, k8), (k8, scaled)):
        with pytest.raises(ArgumentError, match="has no derivatives where it is Quantized"):
            limelight.attention(q.detach(), key, value)


def test_vmap_takes_dense_keys():
    q, k, v = rows(3, 2, 4, 5, 16), rows(3, 2, 2, 9, 16, seed=1), rows(3, 2, 2, 9, 12, seed=2)

    def one(q, k, v):
        return limelight.attention(q, Quantized.of(k, rotate=True), Quantized.of(v, rotate=True))

    found = torch.vmap(one)(q, k, v)
    assert torch.allclose(found, torch.stack([one(*each) for each in zip(q, k, v, strict=True)]), atol=1e-6)
    key, value = Quantized.of(k[0]), Quantized.of(v[0])
    found = torch.vmap(lambda q: limelight.attention(q, key, value))(q)
    assert torch.allclose(found[1], limelight.attention(q[1], key, value), atol=1e-6)
    with pytest.raises(ArgumentError, match="has no derivatives"):
        torch.func.vmap(torch.func.grad(lambda q: limelight.attention(q, key, value).sum()))(q)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Quantized(torch.zeros(2, 3), torch.ones(2, 1)), "`data` must be one of int8"),
        (
            lambda: Quantized(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2)),
            "`scale` must have the shape",
        ),
        (lambda: Quantized(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2, 1).half()), "`scale` must be float32"),
        (lambda: Quantized(torch.full((2, 3), -128, dtype=torch.int8), torch.ones(2, 1)), "from -127 to 127"),
        (lambda: Quantized(torch.zeros(2, 3, dtype=torch.int8), torch.full((2, 1), torch.inf)), "must be finite"),
        (
            lambda: Quantized(torch.zeros(2, 3, dtype=torch.int8), torch.ones(2, 1), 1),
            "`rotated` must be True",
        ),
        (lambda: Quantized.of(torch.zeros(2, 3), "int4"), "`dtype` must be one of int8, float8_e4m3fn, float8_e5m2"),
        (lambda: Quantized.of(torch.zeros(2, 3, dtype=torch.int64)), "`tensor` must be float32"),
        (lambda: Quantized.of(torch.zeros(2, 3), rotate="no"), "`rotate` must be True or False"),
        (lambda: Quantized.of(torch.zeros(2, 3)).dense(torch.int8), "`dtype` must be float32"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


def test_shapes_are_checked_as_those_of_tensors():
    q, k8 = rows(2, 4, 3, 16), Quantized.of(rows(2, 3, 5, 16))
    with pytest.raises(ArgumentError, match="head"):
        limelight.attention(q, k8, k8)
    with pytest.raises(ArgumentError, match="batch"):
        limelight.attention(q, *[Quantized.of(rows(1, 4, 5, 16))] * 2)
    with pytest.raises(ArgumentError, match="width"):
        limelight.attention(q, *[Quantized.of(rows(2, 4, 5, 8))] * 2)


def test_patterns_with_gaps():
    """Blocks of keys that are skipped, sinks, and ranges that begin anywhere."""
    q, k, v = (rows(1, h, n, 64, seed=s).bfloat16() for s, (h, n) in enumerate([(6, 2), (2, 3000), (2, 3000)]))
    for kind in KINDS:
        key, value = (Quantized.of(x, kind, rotate=True) for x in (k, v))
        how = {"pattern": Causal() & (Window(1300, 0) | Keys(5)), "sink": rows(6), "scale": None, "scores": ()}
        ours = limelight.attention(q, key, value, observe=Observe(logsumexp=True), backend="native", **how)
        judged(ours, Example(prepare(q, k, v).shapes, q, k, v, how), key, value, how, torch.bfloat16)
