"""Calls to scaled_dot_product_attention: taken over where they mean the same, left and explained elsewhere."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from support.families import DECODERS, ENCODER_DECODERS, IMAGES
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.functional import scaled_dot_product_attention as bound_before

import limelight
from limelight import BackendError, Observe
from limelight.integrations.torch import sdpa


def heads(*shape, seed=0, **more):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=generator, **more) for _ in range(3))


MASK = torch.rand(2, 1, 7, 7, generator=torch.Generator().manual_seed(1)) < 0.5  # some rows see nothing
CALLS = {
    "every key": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": MASK},
    "float mask": {"attn_mask": torch.where(MASK, 0.5, -torch.inf)},
    "a mask for all": {"attn_mask": MASK[0, 0]},
    "scale": {"scale": 0.3, "is_causal": True},
}


@pytest.mark.parametrize("settings", CALLS.values(), ids=CALLS)
def test_takes_over_what_means_the_same(settings):
    query, key, value = heads(2, 4, 7, 8)
    expected = F.scaled_dot_product_attention(query, key, value, **settings)
    with sdpa() as calls:
        found = F.scaled_dot_product_attention(query, key, value, **settings)
        same = bound_before(query=query, key=key, value=value, **settings)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, same)
    assert calls.taken.total() == 2
    assert not calls.left


@pytest.mark.parametrize("lengths", [(3, 7), (7, 3)])
def test_causal_is_top_left(lengths):
    query, key, value = heads(1, 2, 7, 8)
    query, (key, value) = query[:, :, : lengths[0]], (x[:, :, : lengths[1]] for x in (key, value))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    with sdpa() as calls:
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, None, 0.0, True), expected)
    assert calls.taken == {"causal": 1}


def test_grouped_heads_and_gradients():
    query, _, _ = heads(1, 4, 5, 8)
    _, key, value = heads(1, 2, 5, 8)
    grads = []
    for routed in (False, True):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        if routed:
            with sdpa() as calls:
                output = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        else:
            output = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        grads.append(torch.autograd.grad(output.sum(), leaves))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)
    assert calls.taken.total() + calls.left.total() == 1


def test_dropout_is_as_much():
    query, key, _ = heads(1, 1, 200, 8)
    value = torch.eye(200)[None, None]  # the output is the weights
    torch.manual_seed(3)
    with sdpa() as calls:
        kept = F.scaled_dot_product_attention(query, key, value, dropout_p=0.25) != 0
    assert calls.taken == {"every key, dropout": 1}
    assert abs(kept.float().mean() - 0.75) < 0.01


def half_a_mask():
    tensors = heads(1, 2, 5, 8)
    return [*tensors, torch.zeros(5, 5, dtype=torch.float64)]


LEFT = {
    "a nested tensor": lambda: [torch.nested.nested_tensor([x[0], x[0, :, :2]]) for x in heads(1, 2, 5, 8)],
    "must have the heads of `query`": lambda: [heads(1, 6, 5, 8)[0], *heads(1, 2, 5, 8)[1:]],
    "must have at least 2 dimensions": lambda: list(heads(5)),
    "leading dimensions that broadcast": lambda: [heads(3, 2, 5, 8)[0], *heads(2, 2, 5, 8)[1:]],
    "but it is a float64 tensor of shape (5, 5)": half_a_mask,
    "but it is a float32 tensor of shape (5,)": lambda: [*heads(1, 2, 5, 8), torch.zeros(5)],
    "must be a plain tensor": lambda: [x.as_subclass(Own) for x in heads(1, 2, 5, 8)],
    "`dropout_p` must be a probability from 0 to below 1, but it is 1.0": lambda: [*heads(1, 2, 5, 8), None, 1.0],
}


class Own(torch.Tensor):
    """A subclass that a caller defined."""


@pytest.mark.parametrize("why", LEFT)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_leaves_the_rest_and_says_why(why):
    tensors = LEFT[why]()
    try:
        expected = F.scaled_dot_product_attention(*tensors)
    except (RuntimeError, IndexError) as error:
        expected = error  # PyTorch has the last word on what it does not know either
    with sdpa() as calls:
        if isinstance(expected, Exception):
            with pytest.raises(type(expected)):
                F.scaled_dot_product_attention(*tensors)
        else:
            found = F.scaled_dot_product_attention(*tensors)
            assert all(torch.equal(a, b) for a, b in zip(found.unbind(), expected.unbind(), strict=True))
    assert not calls.taken
    assert why in str(calls)


def test_whatever_is_raised_before_a_kernel_runs_is_left_to_pytorch(monkeypatch):
    """With the reason, of whatever kind it is."""
    tensors = heads(1, 1, 7, 8)
    monkeypatch.setattr("limelight.compat.sdpa.Causal", lambda: {}["key"])
    with sdpa() as calls:
        found = F.scaled_dot_product_attention(*tensors, is_causal=True)
    assert calls.left == {"KeyError: 'key'": 1}
    assert torch.equal(found, F.scaled_dot_product_attention(*tensors, is_causal=True))


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8), (2, 1, 2, 5, 8)], ids=str)
def test_takes_over_other_numbers_of_dimensions(shape):
    tensors = heads(*shape)
    with sdpa() as calls:
        found = F.scaled_dot_product_attention(*tensors)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(*tensors))
    assert calls.taken == {"every key": 1}


def test_takes_over_causal_biases():
    query, (key, value) = heads(1, 2, 3, 8)[0], heads(1, 2, 5, 8)[1:]
    for bias in (causal_upper_left(3, 5), causal_lower_right(3, 5)):
        expected = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        with sdpa() as calls:
            found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        torch.testing.assert_close(found, expected)
        assert calls.taken == {"a CausalBias": 1}


def test_two_masks_are_left_to_pytorch():
    tensors = heads(1, 1, 7, 8)
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=MASK[:1], is_causal=True)
    with sdpa() as calls:
        found = F.scaled_dot_product_attention(*tensors, attn_mask=MASK[:1], is_causal=True)
    assert torch.equal(found, expected)
    assert calls.left.total() == 1


def test_ends_with_its_context():
    tensors = heads(1, 1, 3, 8)
    with sdpa() as calls:
        pass
    F.scaled_dot_product_attention(*tensors)
    assert not calls.taken
    assert not calls.left


def encoder():
    torch.manual_seed(5)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def test_a_model_of_pytorch():
    """Its layers hide their attention from others, and in inference compute it in one piece."""
    model, states = encoder(), heads(2, 5, 16)[0]
    with torch.no_grad():
        expected = model(states)
        with sdpa() as calls, limelight.watching(Observe(entropy=True)) as seen:
            found = model(states)
    torch.testing.assert_close(found, expected)
    assert calls.taken == {"every key": 2}
    assert not calls.left
    assert list(seen) == ["layers.0.self_attn", "layers.1.self_attn"]


@pytest.mark.parametrize("name", ["llama", "t5", "vit"])
def test_a_model_of_transformers_on_sdpa(name):
    model = (DECODERS | ENCODER_DECODERS | IMAGES)[name].build()
    model.set_attn_implementation("sdpa")
    tokens = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(2))
    arguments = {"input_ids": tokens, "attention_mask": (torch.arange(9) >= torch.tensor([[0], [4]])).long()}
    if name == "t5":
        arguments["decoder_input_ids"] = tokens[:, :5]
    elif name == "vit":
        arguments = {"pixel_values": torch.randn(2, 3, 16, 16)}
    real = slice(None) if name != "llama" else arguments["attention_mask"].bool()
    with torch.no_grad():
        expected = model(**arguments)[0][real]
        with sdpa() as calls:
            found = model(**arguments)[0][real]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert calls.taken.total() == (6 if name == "t5" else 2)
    assert not calls.left


# --- Whole weights ---------------------------------------------------------------------------------------------------

PADDING = torch.tensor([[False] * 6, [False] * 4 + [True] * 2])
BAND = torch.rand(6, 6, generator=torch.Generator().manual_seed(6)).tril() > 0.6
BAND[:, 0] = False  # true is unseen here: every query sees a key
MASKS = {
    "no mask": {},
    "bool": {"attn_mask": BAND},
    "float": {"attn_mask": torch.randn(6, 6, generator=torch.Generator().manual_seed(7))},
    "of each head": {"attn_mask": torch.randn(8, 6, 6, generator=torch.Generator().manual_seed(8))},
    "padding": {"key_padding_mask": PADDING},
    "both": {"attn_mask": BAND, "key_padding_mask": PADDING},
    "a hint": {"attn_mask": torch.ones(6, 6).triu(1).bool(), "is_causal": True},
    "a wrong hint": {"attn_mask": BAND, "is_causal": True},
}
LAYERS = {
    "plain": {},
    "more keys": {"add_bias_kv": True, "add_zero_attn": True},
    "other widths": {"kdim": 10, "vdim": 7},
}


@pytest.mark.parametrize("average", [True, False], ids=["averaged", "each head"])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_a_layer_gives_its_weights(options, masks, average):
    """Those of PyTorch, with their gradients, through the same kernel."""
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True, **options)
    inputs = (
        torch.randn(2, 6, 16),
        torch.randn(2, 6, options.get("kdim", 16)),
        torch.randn(2, 6, options.get("vdim", 16)),
    )
    found = []
    for routed in (False, True):
        if routed:
            with sdpa() as calls:
                results = layer(*inputs, **masks, average_attn_weights=average)
        else:
            results = layer(*inputs, **masks, average_attn_weights=average)
        loss = (results[0] ** 2).sum() + (results[1] ** 3).sum()
        gradients = torch.autograd.grad(loss, [*layer.parameters()])
        found.append((results, gradients))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert calls.taken.total() == 1
    assert not calls.left
    assert calls.weights == 2 * 4 * 6 * (6 + 2 * ("add_bias_kv" in options)) * 4
    assert "limelight.watching" in str(calls)


def test_a_layer_without_a_batch_gives_its_weights():
    layer, states = torch.nn.MultiheadAttention(16, 4).eval(), torch.randn(6, 16)
    expected = layer(states, states, states, attn_mask=BAND)
    with sdpa() as calls, torch.no_grad():
        found = layer(states, states, states, attn_mask=BAND)
    torch.testing.assert_close(found, expected)
    assert calls.taken.total() == 1


@pytest.mark.parametrize("graded", [True, False], ids=["with gradients", "without"])
def test_weights_in_training_are_those_that_dropout_left(graded):
    torch.manual_seed(0)
    layer = torch.nn.MultiheadAttention(64, 2, dropout=0.25, batch_first=True)
    states = torch.randn(2, 64, 64)
    with sdpa(), torch.set_grad_enabled(graded):
        output, weights = layer(states, states, states, average_attn_weights=False)
    with torch.no_grad():
        _, whole = layer.eval()(states, states, states, average_attn_weights=False)
        kept = weights != 0
        torch.testing.assert_close(weights, torch.where(kept, whole / 0.75, 0.0))
        assert abs(kept.float().mean() - 0.75) < 0.02
        values = states @ layer.in_proj_weight[128:].T + layer.in_proj_bias[128:]
        mixed = (weights @ values.unflatten(-1, (2, 32)).transpose(1, 2)).transpose(1, 2).flatten(2)
        torch.testing.assert_close(output, layer.out_proj(mixed))


@pytest.mark.parametrize("graded", [True, False], ids=["with gradients", "without"])
def test_a_query_that_sees_nothing_has_no_weights(graded):
    """PyTorch gives NaN where weights are wanted, and zeros where not."""
    layer, states = torch.nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 6, 16)
    padding = torch.tensor([[True] * 6, [False, True] * 3])
    with torch.set_grad_enabled(graded):
        for need_weights in (True, False):
            arguments = {"key_padding_mask": padding, "need_weights": need_weights}
            expected = layer(states, states, states, **arguments)
            with sdpa() as calls:
                found = layer(states, states, states, **arguments)
            torch.testing.assert_close(found, expected, equal_nan=True)
            assert calls.taken.total() == 1
            assert found[0][1].isfinite().all()
            assert found[0][0].isfinite().all() != need_weights


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_layer_that_is_compiled_is_left_to_pytorch(need_weights):
    layer, states = torch.nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 6, 16)
    expected = layer(states, states, states, need_weights=need_weights)
    with sdpa() as calls:
        found = torch.compile(layer, backend="eager", fullgraph=True)(states, states, states, need_weights=need_weights)
    torch.testing.assert_close(found, expected)
    assert calls.left.total() == 1
    assert "the call is recorded by torch.compile" in str(calls)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_layer_of_a_subclass_is_left_to_it(need_weights):
    layer = torch.nn.MultiheadAttention(16, 4, batch_first=True).train()
    states = torch.randn(2, 6, 16).as_subclass(Own)
    expected = layer(states, states, states, need_weights=need_weights)
    with sdpa() as calls:
        found = layer(states, states, states, need_weights=need_weights)
    torch.testing.assert_close(found, expected)
    assert calls.left == {"torch.nn.MultiheadAttention was given a Own": 1}


def test_weights_that_limelight_does_not_give_are_left_to_pytorch(monkeypatch):
    def refuse(*_, **__):
        raise BackendError("for a reason")

    monkeypatch.setattr("limelight.integrations.weights.attention", refuse)
    layer, states = torch.nn.MultiheadAttention(16, 4, batch_first=True), torch.randn(2, 6, 16)
    expected = layer(states, states, states, attn_mask=BAND)
    with sdpa() as calls:
        found = layer(states, states, states, attn_mask=BAND)
    torch.testing.assert_close(found, expected)
    assert calls.left == {"for a reason": 1}


def test_watching_sees_what_no_kernel_serves():
    tensors = heads(1, 1, 3, 8, dtype=torch.float64)
    with sdpa() as calls, limelight.watching(Observe(entropy=True)) as seen:
        F.scaled_dot_product_attention(*tensors)
    assert calls.taken.total() == len(seen) == 1


def test_belongs_to_its_thread():
    """Another thread's calls are neither taken over nor in the account."""
    tensors = heads(1, 1, 3, 8)
    with sdpa() as calls, ThreadPoolExecutor(1) as other:
        other.submit(F.scaled_dot_product_attention, *tensors).result()
        assert not calls.taken
        F.scaled_dot_product_attention(*tensors)
    assert calls.taken.total() == 1
