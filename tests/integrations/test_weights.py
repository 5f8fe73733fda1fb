"""Whole weights, for models of transformers that ask for them: those of eager, and their gradients."""

import pytest
import torch
from support.families import DECODERS, ENCODER_DECODERS, ENCODERS, IMAGES

import limelight
from limelight import Observe
from limelight.integrations.transformers import account

TEXTS = DECODERS | ENCODERS | ENCODER_DECODERS
TOKENS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(2))
REAL = torch.arange(9) >= torch.tensor([[0], [4]])
OTHERWISE = {
    "granite_swa, sinks",  # eager returns other weights than mix the values: before the sinks took theirs
    "longt5",  # the encoder has attention of its own
}
FAMILIES = [name for name in TEXTS | IMAGES if name not in OTHERWISE]


def arguments(name):
    """Of a model, and the queries that see something."""
    if name in IMAGES:
        size = 32 if name == "swin" else 16
        return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(4))}, ...
    if name in ENCODER_DECODERS:
        return {"input_ids": TOKENS, "attention_mask": REAL.long(), "decoder_input_ids": TOKENS[:, :5]}, ...
    return {"input_ids": TOKENS, "attention_mask": REAL.long()}, REAL


def weights_of(output):
    return {(field, n): weights for field in output if "attentions" in field for n, weights in enumerate(output[field])}


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_are_those_of_eager(name):
    model = (TEXTS | IMAGES)[name].build()
    given, real = arguments(name)
    found = []
    for implementation in ("limelight", "eager"):
        model.set_attn_implementation(implementation)
        with account() as calls:
            output = model(**given, output_attentions=True)
        weights = weights_of(output)
        for one in weights.values():
            one.retain_grad()
        output[0][real].square().sum().backward()
        found.append(weights)
        if implementation == "limelight":
            assert calls.weights > 0
    ours, eager = found
    assert ours.keys() == eager.keys()
    for layer, expected in eager.items():
        one = ours[layer]
        assert (one.shape, one.dtype) == (expected.shape, expected.dtype)
        gradient = expected.grad.where(one != 0, 0.0)  # a weight of 0 has none
        for a, b in ((one, expected), (one.grad, gradient)):
            if real is not ...:
                a, b = (x.transpose(1, 2)[real] for x in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * max(1.0, b.abs().max().item()))


def test_outputs_are_the_same_with_weights_and_without():
    model = TEXTS["gemma2"].build()
    model.set_attn_implementation("limelight")
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, model(TOKENS, output_attentions=True).logits)


@pytest.mark.parametrize("graded", [True, False], ids=["with gradients", "without"])
def test_weights_in_training_are_those_that_dropout_left(graded):
    model = TEXTS["bert"].build()
    model.set_attn_implementation("limelight")
    given, _ = arguments("bert")
    layer = model.bert.encoder.layer[0].attention.self
    with torch.no_grad():
        whole = model(**given, output_attentions=True).attentions[0]
    states, handle = [], layer.register_forward_hook(lambda _, inputs, output: states.append((*inputs, *output)))
    layer.train()
    with torch.set_grad_enabled(graded):
        model(**given, output_attentions=True)
    handle.remove()
    inputs, output, weights = states[0][0], *states[0][-2:]
    kept = weights != 0
    torch.testing.assert_close(weights, torch.where(kept, whole / 0.9, 0.0))
    assert 0 < (whole[~kept] > 0).sum() < 0.3 * whole.numel()
    value = layer.value(inputs).unflatten(-1, (4, 8)).transpose(1, 2)
    torch.testing.assert_close(output, (weights @ value).transpose(1, 2).flatten(2))


def test_generated_tokens_come_with_their_weights():
    model = TEXTS["llama"].build()
    given, _ = arguments("llama")
    settings = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True, "output_attentions": True}
    for cache in ("dynamic", "static"):
        found = []
        for implementation in ("limelight", "eager"):
            model.set_attn_implementation(implementation)
            found.append(model.generate(**given, **settings, cache_implementation=cache))
        ours, eager = found
        assert torch.equal(ours.sequences, eager.sequences)
        assert len(ours.attentions) == 3
        for step, (a, b) in enumerate(zip(ours.attentions, eager.attentions, strict=True)):
            for one, expected in zip(a, b, strict=True):
                assert one.shape == expected.shape
                rows = slice(4, None) if step == 0 else slice(None)  # queries of padding see nothing
                torch.testing.assert_close(one[:, :, rows], expected[:, :, rows], rtol=1e-3, atol=1e-5)


def test_weights_of_a_compiled_model():
    model = TEXTS["llama"].build()
    model.set_attn_implementation("limelight")
    with torch.no_grad():
        expected = model(TOKENS, output_attentions=True)
        found = torch.compile(model, backend="eager")(TOKENS, output_attentions=True)
    for one, other in zip(found.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_an_observed_model_gives_its_weights_too():
    model = TEXTS["llama"].build()
    model.set_attn_implementation("limelight")
    with limelight.watching(Observe(entropy=True)) as seen, torch.no_grad():
        weights = model(TOKENS, output_attentions=True).attentions
    for n, one in enumerate(weights):
        entropy = -torch.xlogy(one, one).sum(-1)
        torch.testing.assert_close(seen[f"model.layers.{n}.self_attn"].entropy, entropy, rtol=1e-4, atol=1e-5)


def test_the_account_says_what_weights_cost_and_what_costs_less():
    model = TEXTS["llama"].build()
    model.set_attn_implementation("limelight")
    with account() as calls, torch.no_grad():
        weights = model(TOKENS, output_attentions=True).attentions
    assert calls.weights == sum(one.nbytes for one in weights)
    assert "limelight.watching(Observe(" in str(calls)
    with account() as calls, torch.no_grad():
        model(TOKENS)
    assert calls.weights == 0
    assert "whole weights" not in str(calls)
