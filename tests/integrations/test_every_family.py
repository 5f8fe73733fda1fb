"""Every family of transformers that is built small agrees with its own eager attention on random weights."""

import pytest
import torch
from support.agreement64 import assert_no_worse, float64_throughout, in_float64
from support.families import DECODERS, ENCODER_DECODERS, ENCODERS, IMAGES

from limelight.integrations.transformers import account, report

TEXTS = DECODERS | ENCODERS | ENCODER_DECODERS
# Some layers of theirs have attention of their own, outside the registry.
PARTLY = {"longt5", "siglip vision", "inkling2, sinks of queries"}
ROWS, LENGTH = 24, 11
TOKENS = torch.randint(3, 60, (ROWS, LENGTH), generator=torch.Generator().manual_seed(3))
MISSING = torch.tensor([0, 4, 7]).repeat(ROWS // 3)  # tokens of each row


def padding(side, rows=ROWS):
    """``(rows, LENGTH)`` bool, true where a token exists."""
    place = torch.arange(LENGTH)
    missing = 0 * MISSING if side == "none" else MISSING
    exists = place >= missing[:, None] if side == "left" else place < LENGTH - missing[:, None]
    return exists[:rows]


def inputs(name, side):
    """The model's arguments, and which rows of its logits are real tokens."""
    if name in IMAGES:
        size = 32 if name == "swin" else 16
        return {"pixel_values": torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(4))}, slice(None)
    exists = padding(side)
    arguments = {"input_ids": TOKENS, "attention_mask": exists.long()}
    if name in ENCODER_DECODERS:
        return arguments | {"decoder_input_ids": TOKENS[:, 2:10]}, slice(None)
    return arguments, exists


def first_output(model, arguments, real=slice(None)):
    dtype = next(model.parameters()).dtype
    arguments = {name: x.to(dtype) if x.is_floating_point() else x for name, x in arguments.items()}
    with torch.no_grad():
        return model(**arguments)[0][real]


@pytest.mark.parametrize("name", TEXTS | IMAGES)
def test_agrees_with_eager(name):
    model = (TEXTS | IMAGES)[name].build()
    exact = in_float64(model)
    for side in ("none",) if name in IMAGES else ("none", "left", "right"):
        arguments, real = inputs(name, side)
        found = {}
        for implementation in ("eager", "limelight"):
            model.set_attn_implementation(implementation)
            exact.set_attn_implementation(implementation)
            with account() as calls:
                found[implementation] = first_output(model, arguments, real)
            with float64_throughout():
                found[implementation + "64"] = first_output(exact, arguments, real)
        truth = found["eager64"]
        assert (found["limelight64"] - truth).abs().max() <= 1e-12 * truth.abs().max()
        assert_no_worse(found["limelight"], found["eager"], truth)
        assert calls.taken.total() >= len(report(model).served) >= 1
    assert bool(report(model).own) == (name in PARTLY)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss, sinks", "bert", "t5"])
def test_agrees_in_half_precision(name, dtype):
    model = TEXTS[name].build().to(dtype)
    arguments, real = inputs(name, "left")
    with float64_throughout():
        truth = first_output(in_float64(model), arguments, real)
    found = []
    for implementation in ("limelight", "eager"):
        model.set_attn_implementation(implementation)
        found.append(first_output(model, arguments, real))
    assert_no_worse(*found, truth)


# --- generate --------------------------------------------------------------------------------------------------------

WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
}
FEW = ["llama", "mistral, window 4", "gemma2", "gpt_oss, sinks", "llama4, chunks of 4", "bart", "t5"]


def generated(model, implementation, **settings):
    model.set_attn_implementation(implementation)
    mask = padding("left", rows=3).long()
    return model.generate(TOKENS[:3], attention_mask=mask, max_new_tokens=8, do_sample=False, **settings)


@pytest.mark.parametrize("name", DECODERS | ENCODER_DECODERS)
def test_generates_what_eager_generates(name):
    model = (DECODERS | ENCODER_DECODERS)[name].build()
    for way in WAYS.values() if name in FEW else [WAYS["greedy"]]:
        assert torch.equal(generated(model, "limelight", **way), generated(model, "eager", **way))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_generates_with_an_assistant(name):
    """The assistant proposes several tokens, and the cache is cut back where they are refused."""
    model, assistant = DECODERS[name].build(), DECODERS["llama"].build()
    for parameter in assistant.parameters():
        parameter.data = parameter.data * 1.3
    prompt = TOKENS[:1]
    found = []
    for implementation in ("eager", "limelight"):
        model.set_attn_implementation(implementation)
        found.append(model.generate(prompt, assistant_model=assistant, max_new_tokens=10, do_sample=False))
    assert torch.equal(*found)


# --- training --------------------------------------------------------------------------------------------------------


def gradients(model, implementation, arguments):
    model.set_attn_implementation(implementation)
    model.zero_grad()
    model(**arguments)[0].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "gemma2",
        "gpt_oss, sinks",
        "mixtral",
        "bert",
        "t5",
        "bart",
        "deepseek_v3",
        "modernbert",
        "inkling2, sinks of queries",
    ],
)
def test_gradients(name):
    """Of a training step, without padding, where eager's rows are all real: in float64."""
    model = in_float64(TEXTS[name].build())
    arguments, _ = inputs(name, "none")
    with float64_throughout():
        theirs, ours = (gradients(model, which, arguments) for which in ("eager", "limelight"))
    assert theirs.keys() == ours.keys()
    largest = max(grad.abs().max() for grad in theirs.values())
    for parameter, grad in theirs.items():
        assert (ours[parameter] - grad).abs().max() <= 1e-12 * largest, parameter


def test_padded_rows_send_no_gradient():
    model = in_float64(DECODERS["llama"].build())
    mask = padding("left")
    arguments = {"input_ids": TOKENS, "attention_mask": mask.long()}
    found = []
    with float64_throughout():
        for implementation in ("eager", "limelight"):
            model.set_attn_implementation(implementation)
            model.zero_grad()
            model(**arguments)[0][mask].square().mean().backward()
            found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).abs().max() <= 1e-12 * found[0].abs().max()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["gemma2", "bert", "t5"])
def test_activation_checkpointing(name, reentrant):
    """The mask travels through the checkpoint; the repeated pass drops the same weights."""
    model = in_float64(TEXTS[name].build()).train()
    arguments, _ = inputs(name, "left")
    torch.manual_seed(5)
    plain = gradients(model, "limelight", arguments)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    torch.manual_seed(5)
    repeated = gradients(model, "limelight", arguments)
    assert plain.keys() == repeated.keys()
    largest = max(grad.abs().max() for grad in plain.values())
    for parameter, grad in plain.items():
        # Norms round to float32; another mask of dropped weights would be off by a tenth.
        assert (repeated[parameter] - grad).abs().max() <= 1e-6 * largest, parameter


def test_dropout():
    """Drawn from torch's generator in training, absent otherwise."""
    model = DECODERS["llama"].build()
    model.set_attn_implementation("limelight")
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    plain = first_output(model, {"input_ids": TOKENS})
    model.train()
    torch.manual_seed(6)
    dropped = first_output(model, {"input_ids": TOKENS})
    torch.manual_seed(6)
    again = first_output(model, {"input_ids": TOKENS})
    assert torch.equal(dropped, again)
    assert (dropped - plain).abs().max() > 0.1
