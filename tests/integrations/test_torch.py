"""Calls to scaled_dot_product_attention: taken over where they mean the same, left and explained elsewhere."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from families import DECODERS, ENCODER_DECODERS, IMAGES
from torch.nn.functional import scaled_dot_product_attention as bound_before

import limelight
from limelight import Observe
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
    with sdpa() as told:
        found = F.scaled_dot_product_attention(query, key, value, **settings)
        same = bound_before(query=query, key=key, value=value, **settings)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found, same)
    assert told.taken.total() == 2
    assert not told.left


@pytest.mark.parametrize("lengths", [(3, 7), (7, 3)])
def test_causal_is_top_left(lengths):
    query, key, value = heads(1, 2, 7, 8)
    query, (key, value) = query[:, :, : lengths[0]], (x[:, :, : lengths[1]] for x in (key, value))
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    with sdpa() as told:
        torch.testing.assert_close(F.scaled_dot_product_attention(query, key, value, None, 0.0, True), expected)
    assert told.taken == {"causal": 1}


def test_grouped_heads_and_gradients():
    query, _, _ = heads(1, 4, 5, 8)
    _, key, value = heads(1, 2, 5, 8)
    grads = []
    for routed in (False, True):
        leaves = [x.clone().requires_grad_() for x in (query, key, value)]
        if routed:
            with sdpa() as told:
                output = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        else:
            output = F.scaled_dot_product_attention(*leaves, is_causal=True, enable_gqa=True)
        grads.append(torch.autograd.grad(output.sum(), leaves))
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)
    assert told.taken.total() + told.left.total() == 1


def test_dropout_is_as_much():
    query, key, _ = heads(1, 1, 200, 8)
    value = torch.eye(200)[None, None]  # the output is the weights
    torch.manual_seed(3)
    with sdpa() as told:
        kept = F.scaled_dot_product_attention(query, key, value, dropout_p=0.25) != 0
    assert told.taken == {"every key, dropout": 1}
    assert abs(kept.float().mean() - 0.75) < 0.01


LEFT = {
    "a nested tensor": lambda: [torch.nested.nested_tensor([x[0], x[0, :, :2]]) for x in heads(1, 2, 5, 8)],
    "must have the heads of `query`": lambda: [heads(1, 2, 5, 8)[0], *heads(1, 1, 5, 8)[1:]],
    "must have 4 dimensions": lambda: list(heads(2, 1, 2, 5, 8)),
    "must have the batch size": lambda: [heads(2, 2, 5, 8)[0], *heads(1, 2, 5, 8)[1:]],
}


@pytest.mark.parametrize("why", LEFT)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_leaves_the_rest_and_says_why(why):
    tensors = LEFT[why]()
    try:
        expected = F.scaled_dot_product_attention(*tensors)
    except RuntimeError:
        expected = None  # PyTorch has the last word on what it does not know either
    with sdpa() as told:
        if expected is None:
            with pytest.raises(RuntimeError):
                F.scaled_dot_product_attention(*tensors)
        else:
            found = F.scaled_dot_product_attention(*tensors)
            assert all(torch.equal(a, b) for a, b in zip(found.unbind(), expected.unbind(), strict=True))
    assert not told.taken
    assert why in str(told)


def test_two_masks_are_left_to_pytorch():
    tensors = heads(1, 1, 7, 8)
    expected = F.scaled_dot_product_attention(*tensors, attn_mask=MASK[:1], is_causal=True)
    with sdpa() as told:
        found = F.scaled_dot_product_attention(*tensors, attn_mask=MASK[:1], is_causal=True)
    assert torch.equal(found, expected)
    assert told.left.total() == 1


def test_ends_with_its_context():
    tensors = heads(1, 1, 3, 8)
    with sdpa() as told:
        pass
    F.scaled_dot_product_attention(*tensors)
    assert not told.taken
    assert not told.left


def encoder():
    torch.manual_seed(5)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


def test_a_model_of_pytorch():
    """Its layers hide their attention from others, and in inference compute it in one piece."""
    model, states = encoder(), heads(2, 5, 16)[0]
    with torch.no_grad():
        expected = model(states)
        with sdpa() as told, limelight.watching(Observe(entropy=True)) as seen:
            found = model(states)
    torch.testing.assert_close(found, expected)
    assert told.taken == {"every key": 2}
    assert not told.left
    assert list(seen.layers) == ["layers.0.self_attn", "layers.1.self_attn"]


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
        with sdpa() as told:
            found = model(**arguments)[0][real]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert told.taken.total() == (6 if name == "t5" else 2)
    assert not told.left


def test_a_layer_that_gives_its_weights():
    layer, states = encoder().layers[0].self_attn, heads(2, 5, 16)[0]
    expected = layer(states, states, states)
    with sdpa() as told:
        found = layer(states, states, states)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert "need_weights=True" in str(told)


def test_watching_sees_what_no_kernel_serves():
    tensors = heads(1, 1, 3, 8, dtype=torch.float64)
    with sdpa() as told, limelight.watching(Observe(entropy=True)) as seen:
        F.scaled_dot_product_attention(*tensors)
    assert told.taken.total() == len(seen.layers) == 1


def test_belongs_to_its_thread():
    """Another thread's calls are neither taken over nor in the account."""
    tensors = heads(1, 1, 3, 8)
    with sdpa() as told, ThreadPoolExecutor(1) as other:
        other.submit(F.scaled_dot_product_attention, *tensors).result()
        assert not told.taken
        F.scaled_dot_product_attention(*tensors)
    assert told.taken.total() == 1
