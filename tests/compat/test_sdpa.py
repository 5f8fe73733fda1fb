"""Neighbours' conventions mean what the neighbours mean."""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as theirs

import limelight
from limelight import ArgumentError, BackendError, compat
from limelight.compat import sdpa_kernel

q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"is_causal": True},
        {"attn_mask": torch.rand(7, 9) < 0.8},
        {"attn_mask": torch.randn(4, 7, 9)},
        {"scale": 0.3},
    ],
    ids=lambda s: ", ".join(s) or "plain",
)
def test_scaled_dot_product_attention(settings):
    torch.testing.assert_close(compat.scaled_dot_product_attention(q, k, v, **settings), theirs(q, k, v, **settings))


def test_scaled_dot_product_attention_of_groups():
    ours = compat.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
    torch.testing.assert_close(ours, theirs(q, k[:, :2], v[:, :2], enable_gqa=True))
    with pytest.raises(ArgumentError, match="enable_gqa"):
        compat.scaled_dot_product_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ArgumentError, match="is_causal"):
        compat.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(7, 9).bool(), is_causal=True)


def random(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(len(shapes))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


SHAPES = {
    "2": ((7, 8), (9, 8), (9, 3)),
    "3": ((4, 7, 8), (4, 9, 8), (4, 9, 3)),
    "5": ((2, 3, 4, 7, 8), (2, 3, 4, 9, 8), (2, 3, 4, 9, 8)),
    "6": ((2, 1, 3, 4, 7, 8), (2, 1, 3, 4, 9, 8), (2, 1, 3, 4, 9, 8)),
    "one key-value head": ((2, 4, 7, 8), (2, 1, 9, 8), (2, 1, 9, 8)),
    "one key head": ((2, 4, 7, 8), (2, 1, 9, 8), (2, 4, 9, 8)),
    "one query head": ((2, 1, 7, 8), (2, 4, 9, 8), (2, 4, 9, 8)),
    "one row of keys": ((2, 4, 7, 8), (1, 4, 9, 8), (1, 4, 9, 8)),
    "one row of queries": ((1, 4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 8)),
    "3 against 4": ((4, 7, 8), (2, 4, 9, 8), (2, 4, 9, 8)),
    "4 against 3 and 2": ((2, 4, 7, 8), (4, 9, 8), (9, 8)),
    "2 against 4": ((7, 8), (2, 4, 9, 8), (2, 4, 9, 8)),
    "4 against 5": ((3, 4, 7, 8), (2, 1, 4, 9, 8), (2, 3, 4, 9, 8)),
    "no rows": ((0, 4, 7, 8), (0, 4, 9, 8), (0, 4, 9, 8)),
    "no queries": ((2, 4, 0, 8), (2, 4, 9, 8), (2, 4, 9, 8)),
    "no keys": ((2, 4, 7, 8), (2, 4, 0, 8), (2, 4, 0, 8)),
}


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "masked"])
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_leading_dimensions_broadcast(shapes, masked):
    tensors = [tensor.requires_grad_() for tensor in random(*shapes, dtype=torch.float64)]
    settings = {}
    if masked:  # a mask of every row, where there are rows
        lead = torch.broadcast_shapes(*(shape[:-2] for shape in shapes))
        settings["attn_mask"] = torch.rand(*lead, shapes[0][-2], shapes[1][-2]) < 0.8
        settings["attn_mask"][..., :1] = True
    expected = theirs(*tensors, **settings)
    found = compat.scaled_dot_product_attention(*tensors, **settings)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((output * weight).sum(), tensors) for output in (found, expected)]
    torch.testing.assert_close(*gradients)


GROUPS = {
    "3": ((4, 7, 8), (2, 9, 8), (2, 9, 8)),
    "5": ((3, 2, 4, 7, 8), (3, 1, 2, 9, 8), (3, 2, 2, 9, 8)),
    "two key and four value heads": ((2, 4, 7, 8), (2, 2, 9, 8), (2, 4, 9, 8)),
    "one row of keys": ((2, 4, 7, 8), (1, 2, 9, 8), (2, 2, 9, 8)),
}


@pytest.mark.parametrize("shapes", GROUPS.values(), ids=GROUPS)
def test_leading_dimensions_of_groups(shapes):
    tensors = random(*shapes)
    expected = theirs(*tensors, enable_gqa=True)
    torch.testing.assert_close(compat.scaled_dot_product_attention(*tensors, enable_gqa=True), expected)


@pytest.mark.parametrize("mask", [(2, 1, 4, 7, 9), (3, 1, 7, 9), (1, 1, 1, 1, 9), (7, 1), (4, 7, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.float64], ids=str)
def test_masks_of_five_dimensions(mask, dtype):
    tensors = random((2, 3, 4, 7, 8), (2, 3, 4, 9, 8), (2, 3, 4, 9, 8), dtype=torch.float64)
    numbers = random(mask)[0]
    numbers = numbers < 1 if dtype == torch.bool else numbers.to(dtype)
    found, expected = (f(*tensors, attn_mask=numbers) for f in (compat.scaled_dot_product_attention, theirs))
    if dtype == torch.bool:  # PyTorch gives NaN or zeros for a query that sees nothing, by the way it takes
        expected = expected.where(numbers.any(-1, keepdim=True), 0.0)
    torch.testing.assert_close(found, expected)


class Subclass(torch.Tensor):
    pass


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_refuses_what_pytorch_refuses_or_means_otherwise():
    nested = torch.nested.nested_tensor([torch.randn(4, 7, 8), torch.randn(4, 7, 8)])
    jagged = torch.nested.nested_tensor([torch.randn(7, 4, 8), torch.randn(5, 4, 8)], layout=torch.jagged)
    for match, arguments in {
        r"`query` must have at least 2 dimensions.*\(8,\)": (q[0, 0, 0], k, v),
        r"`key` and `value` must have the heads": (q, k[:, :2], v[:, :2]),
        r"`key` and `value` must have leading dimensions that broadcast": (q, k.repeat(2, 1, 1, 1), v),
        r"`attn_mask` must have at least 2 dimensions": (q, k, v, torch.ones(9)),
        r"`attn_mask` must be bool, float32 or of the dtype of `query`.*float64": (q, k, v, torch.ones(7, 9).double()),
        r"`attn_mask` must be bool, float32 .*int64": (q, k, v, torch.ones(7, 9).long()),
        r"`attn_mask` must broadcast to \(2, 4, 7, 9\)": (q, k, v, torch.ones(3, 1, 1, 7, 9)),
        r"`query` must not be a nested tensor": (nested, nested, nested),
        r"`query` must not be a nested tensor.*jagged": (jagged, jagged, jagged),
        r"`value` must be a plain tensor, but it is a .*Subclass": (q, k, v.as_subclass(Subclass)),
        r"`attn_mask` must be a plain tensor, but it is a .*Subclass": (
            q,
            k,
            v,
            torch.ones(7, 9).as_subclass(Subclass),
        ),
        r"`attn_mask` must be made for 7 queries and 9 keys.*9 queries and 7 keys": (q, k, v, causal_upper_left(9, 7)),
        r"`key` must be a torch.Tensor": (q, k.tolist(), v),
    }.items():
        with pytest.raises(ArgumentError, match=match):
            compat.scaled_dot_product_attention(*arguments)


def test_autocast_converts_masks():
    """As PyTorch does it: every float dtype but float64."""
    mask = torch.randn(7, 9).half()
    with torch.autocast("cpu", torch.bfloat16):
        expected = theirs(q, k, v, mask)
        found = compat.scaled_dot_product_attention(q, k, v, mask)
        with pytest.raises(ArgumentError, match="dtype of `query`"):
            compat.scaled_dot_product_attention(q, k, v, mask.double())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)  # theirs is a mask of bfloat16 numbers


@pytest.mark.filterwarnings("ignore:Lower right causal bias")
@pytest.mark.parametrize("lengths", [(7, 9), (9, 7), (8, 8)], ids=str)
def test_causal_bias(lengths):
    query, key, value = random((2, 4, lengths[0], 8), (2, 4, lengths[1], 8), (2, 4, lengths[1], 8))
    upper = torch.ones(lengths).tril().bool()
    lower = torch.ones(lengths).tril(lengths[1] - lengths[0]).bool()
    for made_by, seen in ((causal_upper_left, upper), (causal_lower_right, lower)):
        scores = (query @ key.mT / 8**0.5).masked_fill(~seen, -torch.inf)
        weights = scores.softmax(-1).where(seen.any(-1, keepdim=True), 0.0)
        found = compat.scaled_dot_product_attention(query, key, value, attn_mask=made_by(*lengths))
        torch.testing.assert_close(found, weights @ value)
        with pytest.raises(ArgumentError, match="is_causal=True"):
            compat.scaled_dot_product_attention(query, key, value, attn_mask=made_by(*lengths), is_causal=True)


@pytest.mark.parametrize("named", ["reference", SDPBackend.MATH, ["reference"]], ids=str)
def test_sdpa_kernel_chooses_the_backend(named, monkeypatch):
    """Of every function of the package, until the block ends."""
    asked = []

    def attention(*tensors, backend=None, **settings):
        asked.append(backend)
        return limelight.attention(*tensors, backend=backend, **settings)

    monkeypatch.setattr(compat.kernels.operator, "attention", attention)
    expected = compat.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(named):
        torch.testing.assert_close(compat.scaled_dot_product_attention(q, k, v), expected)
        compat.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)))
        compat.flex_attention(q, k, v)
        compat.xformers.memory_efficient_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        compat.MultiheadAttention(8, 2)(q[0], q[0], q[0])
    compat.scaled_dot_product_attention(q, k, v)
    assert asked == [None, *["reference"] * 5, None]


def test_sdpa_kernel_tries_several_and_raises_where_none_serves():
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        compat.scaled_dot_product_attention(q, k, v)
    with sdpa_kernel(["flash3", "flash1"]), pytest.raises(BackendError, match=r"'flash3' cannot.*'flash1' cannot"):
        compat.scaled_dot_product_attention(q, k, v)
    for wrong in ("flash9", SDPBackend.ERROR, [], 3):
        with pytest.raises(ArgumentError, match="`backends`"), sdpa_kernel(wrong):
            pass


def test_sdpa_kernel_keeps_an_order(monkeypatch):
    chosen = lambda: compat.kernels._chosen  # noqa: E731
    with sdpa_kernel(["reference", "native"]):
        assert chosen() == ("native", "reference")
        with sdpa_kernel(["reference", "native"], set_priority=True):
            assert chosen() == ("reference", "native")
        assert chosen() == ("native", "reference")
    assert chosen() == ()
