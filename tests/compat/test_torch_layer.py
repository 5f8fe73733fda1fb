"""`compat.MultiheadAttention` is PyTorch's layer."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn

from limelight import ArgumentError
from limelight.compat import MultiheadAttention, replace_multihead_attention

SIZES = {
    "plain": {},
    "no bias": {"bias": False},
    "other widths": {"kdim": 5, "vdim": 7},
    "added keys": {"add_bias_kv": True, "add_zero_attn": True},
    "zero key": {"add_zero_attn": True, "kdim": 5},
}
B, Lq, Lk, H, WIDTH = 3, 5, 6, 4, 16


def both(**sizes):
    theirs = nn.MultiheadAttention(WIDTH, H, dtype=torch.float64, **sizes)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.5)
    ours = MultiheadAttention(WIDTH, H, dtype=torch.float64, **sizes)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    return theirs, ours


def masks(kind, Lq, Lk, causal=False):
    """An `attn_mask` and a `key_padding_mask` of PyTorch's meaning, under which every query sees the first key."""
    attn_mask = torch.rand(B * H, Lq, Lk) < 0.4 if "heads" in kind else torch.rand(Lq, Lk) < 0.4
    attn_mask[..., 0] = False
    padding = torch.arange(Lk) >= torch.tensor([[Lk], [Lk - 2], [1]])
    numbers = lambda mask: torch.randn(mask.shape, dtype=torch.float64).masked_fill(mask, -torch.inf)  # noqa: E731
    if "float" in kind:
        attn_mask, padding = numbers(attn_mask), numbers(padding)
    return (attn_mask if "mask" in kind else None), (padding if "padding" in kind else None)


def compared(theirs, ours, arguments, **settings):
    """Outputs, weights, and the gradients of inputs and parameters are the same."""
    found = []
    for layer in (theirs, ours):
        output, weights = layer(*arguments, **settings)
        loss = output.sin().sum() + (0 if weights is None else weights.cos().sum())
        inputs = [x for n, x in enumerate(arguments) if all(x is not y for y in arguments[:n])]
        found.append((output, weights, torch.autograd.grad(loss, [*inputs, *layer.parameters()])))
    torch.testing.assert_close(found[1], found[0])


MASKS = ["", "padding", "mask", "mask heads", "mask padding", "mask float", "mask heads float padding"]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_is_pytorchs_layer(sizes, kind):
    for batch_first, need_weights in itertools.product((False, True), (False, True)):
        theirs, ours = both(batch_first=batch_first, **sizes)
        shapes = ((Lq, WIDTH), (Lk, ours.kdim), (Lk, ours.vdim))
        arguments = [
            torch.randn(*((B, n) if batch_first else (n, B)), width, dtype=torch.float64, requires_grad=True)
            for n, width in shapes
        ]
        attn_mask, padding = masks(kind, Lq, Lk)
        settings = {"attn_mask": attn_mask, "key_padding_mask": padding, "need_weights": need_weights}
        compared(theirs, ours, arguments, **settings)
        compared(theirs, ours, arguments, average_attn_weights=False, **settings)


def test_without_a_batch_and_of_itself():
    theirs, ours = both()
    x = torch.randn(Lq, WIDTH, dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([False, False, True, False, True])
    for settings in ({}, {"need_weights": False}, {"key_padding_mask": padding}, {"average_attn_weights": False}):
        compared(theirs, ours, (x, x, x), **settings)
    x = torch.randn(Lq, B, WIDTH, dtype=torch.float64, requires_grad=True)
    compared(theirs, ours, (x, x, x))


@pytest.mark.parametrize("added", [False, True], ids=["plain", "added keys"])
@pytest.mark.parametrize("Lk", [Lq, Lq + 2])
@pytest.mark.parametrize("kind", ["", "padding", "padding float"])
def test_causal(kind, Lk, added):
    """With the mask that PyTorch wants, and without it."""
    theirs, ours = both(batch_first=True, add_bias_kv=added, add_zero_attn=added)
    query, key = (torch.randn(B, n, WIDTH, dtype=torch.float64, requires_grad=True) for n in (Lq, Lk))
    mask = ~torch.ones(Lq, Lk).tril().bool()
    _, padding = masks(kind, Lq, Lk)
    if "float" in kind:
        mask = torch.zeros(Lq, Lk, dtype=torch.float64).masked_fill(mask, -torch.inf)
    for need_weights in (False, True):
        expected = theirs(query, key, key, attn_mask=mask, key_padding_mask=padding, need_weights=need_weights)
        for attn_mask in (None, mask):
            found = ours(
                query, key, key, attn_mask=attn_mask, key_padding_mask=padding, need_weights=need_weights,
                is_causal=True,
            )  # fmt: skip
            torch.testing.assert_close(found, expected)


def test_a_query_that_sees_nothing_gives_zeros():
    _, ours = both(batch_first=True, bias=False)
    x = torch.randn(B, Lq, WIDTH, dtype=torch.float64)
    padding = torch.zeros(B, Lq, dtype=torch.bool)
    padding[1] = True
    output, weights = ours(x, x, x, key_padding_mask=padding)
    assert not output[1].any()
    assert not weights[1].any()
    assert output[0].all()


def test_dropout_is_of_training():
    layer = MultiheadAttention(WIDTH, H, dropout=0.5)
    x = torch.randn(Lq, B, WIDTH)
    assert not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])
    layer.eval()
    assert torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])


def test_autocast():
    layer = MultiheadAttention(WIDTH, H)
    x = torch.randn(Lq, B, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = layer(x, x, x)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), layer(x, x, x)[0], rtol=0.05, atol=0.02)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_replaces_the_layers_of_a_model(monkeypatch):
    """Also in evaluation, where PyTorch's encoder computes attention without calling the layer."""
    layer = nn.TransformerEncoderLayer(WIDTH, H, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(B, Lq, WIDTH)
    padding = torch.arange(Lq) >= torch.tensor([[Lq], [Lq - 2], [1]])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
    parameters = dict(model.named_parameters())
    assert replace_multihead_attention(model) == 2
    assert all(found is parameters[name] for name, found in model.named_parameters())
    called = []
    monkeypatch.setattr(MultiheadAttention, "forward", counted(MultiheadAttention.forward, called))
    with torch.no_grad():
        found = model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(found[~padding], expected[~padding])
    assert len(called) == 2
    assert replace_multihead_attention(model) == 0
    assert not model.training
    assert not model.layers[0].self_attn.training


def counted(forward, called):
    def wrapped(*args, **kwargs):
        called.append(1)
        return forward(*args, **kwargs)

    return wrapped


def test_is_copied_pickled_and_compiled():
    _, ours = both(batch_first=True)
    x = torch.randn(B, Lq, WIDTH, dtype=torch.float64)
    expected = ours(x, x, x, need_weights=False)[0]
    for same in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):  # of this test itself
        assert torch.equal(same(x, x, x, need_weights=False)[0], expected)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, x, x, need_weights=False)[0], expected)


def test_wrong_arguments():
    layer = MultiheadAttention(WIDTH, H, kdim=5)
    query, key, value = torch.randn(Lq, B, WIDTH), torch.randn(Lk, B, 5), torch.randn(Lk, B, WIDTH)
    for match, arguments, settings in [
        (r"`key` must be \(L, B, 5\)", (query, query, value), {}),
        (r"`query` must be \(L, B, 16\)", (query[..., None], key, value), {}),
        ("`key` and `value` must have the same tokens", (query, key, value[1:]), {}),
        ("`key` and `value` must have the same tokens", (query[:, 0], key, value), {}),
        ("`key` must have as many rows as `query`", (query[:, 1:], key, value), {}),
        (r"`attn_mask` must be \(5, 6\) or \(12, 5, 6\)", (query, key, value), {"attn_mask": torch.zeros(6, 5)}),
        (r"`key_padding_mask` must be \(3, 6\)", (query, key, value), {"key_padding_mask": torch.zeros(6, 3)}),
    ]:
        with pytest.raises(ArgumentError, match=match):
            layer(*arguments, **settings)
    with pytest.raises(ArgumentError, match=r"`layer` must be a torch\.nn\.MultiheadAttention"):
        MultiheadAttention.from_torch(nn.Linear(2, 2))
    with pytest.raises(ArgumentError, match="from_torch"):
        replace_multihead_attention(nn.MultiheadAttention(8, 2))
