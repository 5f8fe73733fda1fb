"""Caches of transformers that keep only some keys, or 8 bits: the same keys and tokens as in our own models."""

import copy
import dataclasses
import pickle

import pytest
import torch
from support.peers import FIRST_WORD, LENGTHS, made
from transformers import DynamicCache

import limelight
from limelight.backends import native
from limelight.backends.contract import BackendError
from limelight.checkpoints.load import load
from limelight.generation import Beam
from limelight.integrations.transformers import EightBitCache, KeptCache, enable
from limelight.nn import Adaptive, Cache, Keep, LastQueries, Pyramid, Received

PROMPTS = [torch.randint(FIRST_WORD, 50, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
KEPT = {
    "recency": Keep(9, 2, 3, interval=1),
    "received": Keep(10, 1, 3, Received(), heads=Adaptive(), interval=2),
    "last queries": Keep(0.5, 1, 2, LastQueries(4, 3), Pyramid(3.0), Adaptive(), interval=3),
}
NEW = 12


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our model in float64 and theirs, which computes with Limelight; made once."""
    enable()
    kept = {}

    def both(name):
        if name not in kept:
            theirs, folder = made(name), tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            ours = dataclasses.replace(load(folder, dtype=torch.float64), special_token_ids={})
            theirs = theirs.double().eval()
            theirs.set_attn_implementation("limelight")
            theirs.generation_config.eos_token_id = None
            kept[name] = ours, theirs
        return kept[name]

    return both


def generated(theirs, keep, prompts=PROMPTS, dtype=None, **more):
    """The new tokens of each prompt, padded at the left, and the cache."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (longest - len(row)), *row] for row in prompts])
    mask = torch.tensor([[*[0] * (longest - len(row)), *[1] * len(row)] for row in prompts])
    if keep is not None:
        cache = KeptCache(keep, theirs.config, dtype=dtype)
    else:
        cache = DynamicCache(config=theirs.config) if dtype is None else EightBitCache(theirs.config, dtype)
    how = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "past_key_values": cache, **more}
    found = theirs.generate(input_ids=ids, attention_mask=mask, **how)[:, longest:]
    return tuple(tuple(row) for row in found.tolist()), cache


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("kept", KEPT)
def test_the_tokens_of_our_own_models(pair, name, kept):
    ours, theirs = pair(name)
    tokens, cache = generated(theirs, KEPT[kept])
    assert tokens == ours.generate(PROMPTS, tokens=NEW, keep=KEPT[kept]).ids
    assert generated(theirs, None)[0] == ours.generate(PROMPTS, tokens=NEW).ids
    assert cache.get_seq_length() == max(LENGTHS) + NEW - 1


@pytest.mark.parametrize("kept", KEPT)
def test_the_same_keys_are_kept(pair, kept):
    ours, theirs = pair("llama")
    tokens, cache = generated(theirs, KEPT[kept])
    for row, prompt in enumerate(PROMPTS):
        alone = Cache(keep=KEPT[kept])
        with torch.no_grad():
            ours.network(torch.tensor([prompt]), cache=alone)
            for token in tokens[row][:-1]:
                ours.network(torch.tensor([[token]]), cache=alone)
        for layer in range(ours.config.layers):
            mine, other = alone.kept(layer), cache.kept(layer)
            assert [head.tolist() for head in mine.positions[0]] == [head.tolist() for head in other.positions[row]]
            assert mine.evicted[0].tolist() == other.evicted[row].tolist()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("dtype", ["int8", "float8_e5m2"])
def test_eight_bits_write_the_tokens_of_our_own_models(pair, name, dtype, monkeypatch):
    ours, theirs = pair(name)
    own = ours.generate(PROMPTS, tokens=NEW, cache_dtype=dtype).ids
    read, forward = [], native.forward

    def spied(call):
        read.append(call.key.dtype)
        return forward(call)

    monkeypatch.setattr(native, "forward", spied)
    tokens, cache = generated(theirs, None, dtype=dtype)
    assert tokens == own
    layers = ours.config.layers
    assert set(read[:layers]) == {torch.float64}  # of the prompt, which sees itself as it was computed
    assert set(read[layers:]) == {getattr(torch, dtype)}
    plain = generated(theirs, None)[1]
    assert cache.get_seq_length() == plain.get_seq_length()
    beams = generated(theirs, None, [PROMPTS[-1]], dtype, num_beams=3, length_penalty=1.0)[0]
    assert beams == ours.generate([PROMPTS[-1]], Beam(3), tokens=NEW, cache_dtype=dtype).ids
    cache.reset()
    assert cache.get_seq_length() == cache.bytes == 0


@pytest.mark.parametrize("kept", KEPT)
def test_a_policy_in_eight_bits_writes_the_tokens_of_our_own_models(pair, kept):
    ours, theirs = pair("llama")
    tokens, cache = generated(theirs, KEPT[kept], dtype="int8")
    assert tokens == ours.generate(PROMPTS, tokens=NEW, keep=KEPT[kept], cache_dtype="int8").ids
    assert cache.bytes < generated(theirs, KEPT[kept])[1].bytes


def test_beams_and_conversations_that_go_on(pair):
    ours, theirs = pair("llama")
    assert generated(theirs, Keep(100))[0] == generated(theirs, None)[0]
    beams = generated(theirs, KEPT["received"], [PROMPTS[-1]], num_beams=3, length_penalty=1.0)[0]
    assert beams == ours.generate([PROMPTS[-1]], Beam(3), tokens=NEW, keep=KEPT["received"]).ids
    cache, prompt = KeptCache(KEPT["received"], theirs.config), torch.tensor([PROMPTS[-1]])
    how = {"do_sample": False, "max_new_tokens": 4, "past_key_values": cache}
    text = theirs.generate(prompt, **how)
    text = theirs.generate(torch.cat((text, prompt[:, :5]), 1), **how)
    own = Cache(keep=KEPT["received"])
    with torch.no_grad():
        for part in (prompt, *text[:, prompt.shape[1] : prompt.shape[1] + 3].split(1, 1)):
            ours.network(part, cache=own)
        begun = prompt.shape[1] + 3
        for part in (text[:, begun : begun + 6], *text[:, begun + 6 : -1].split(1, 1)):
            last = ours.network(part, cache=own).logits[:, -1].argmax(-1)
    assert last.tolist() == text[:, -1].tolist()
    assert own.kept(1).positions[0][0].tolist() == cache.kept(1).positions[0][0].tolist()
    cache.reset()
    assert cache.get_seq_length() == cache.bytes == 0


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("passes", [0, 2])
def test_an_interrupted_pass_is_noticed(pair, kept, passes):
    """Ctrl-C between two layers: their keys are then those of different tokens."""
    theirs = pair("llama")[1]
    cache = KeptCache(KEPT["received"], theirs.config) if kept else EightBitCache(theirs.config)
    prompt, calls = torch.tensor([PROMPTS[-1]]), []

    def interrupt(*_):
        calls.append(1)
        if len(calls) > passes:
            raise KeyboardInterrupt

    how = {"past_key_values": cache, "do_sample": False, "max_new_tokens": 6}
    hook = theirs.model.layers[1].self_attn.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        theirs.generate(prompt, **how)
    hook.remove()
    with pytest.raises(BackendError, match=r"since a pass was interrupted\. Use reset"), torch.no_grad():
        theirs(prompt[:, :1], past_key_values=cache)
    cache.reset()
    again = tuple(theirs.generate(prompt, **how)[0, len(PROMPTS[-1]) :].tolist())
    whole = generated(theirs, KEPT["received"] if kept else None, [PROMPTS[-1]], None if kept else "int8")[0]
    assert again == whole[0][:6]


@pytest.mark.parametrize("kept", [True, False])
def test_copies_and_other_batches(pair, kept):
    theirs = pair("llama")[1]
    cache = KeptCache(KEPT["last queries"], theirs.config, dtype="int8") if kept else EightBitCache(theirs.config)
    prompt = torch.tensor([PROMPTS[-1]])
    with torch.no_grad():
        theirs(prompt, past_key_values=cache)
        twins = [pickle.loads(pickle.dumps(cache)), copy.deepcopy(cache)]
        with pytest.raises(BackendError, match="belongs to one batch: it holds 1 rows, and there are keys of 2"):
            theirs(prompt[:, :2].expand(2, -1), past_key_values=copy.deepcopy(cache))
        logits = [theirs(prompt[:, :2], past_key_values=each).logits for each in (cache, *twins)]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


def test_what_is_refused(pair):
    theirs = pair("llama")[1]
    with pytest.raises(limelight.ArgumentError, match="must be a Keep"):
        KeptCache(2048, theirs.config)
    with pytest.raises(limelight.ArgumentError, match="configuration of the model"):
        KeptCache(Keep(2048), theirs)
    with pytest.raises(limelight.ArgumentError, match="`dtype` must be one of int8"):
        EightBitCache(theirs.config, "int4")
    with pytest.raises(limelight.ArgumentError, match="configuration of the model"):
        EightBitCache(theirs)
    with pytest.raises(BackendError, match="An EightBitCache cannot serve `output_attentions`"):
        generated(theirs, None, dtype="int8", output_attentions=True, return_dict_in_generate=True)
    with pytest.raises(BackendError, match="output_attentions"):
        generated(theirs, Keep(100), output_attentions=True, return_dict_in_generate=True)
    cache = generated(theirs, Keep(100))[1]
    with pytest.raises(BackendError, match="cannot be cropped"):
        cache.crop(-1)
    mask = torch.ones(len(PROMPTS), cache.get_seq_length() + 2)
    mask[0, -1] = 0
    with pytest.raises(BackendError, match="tokens that are padding"), torch.no_grad():
        theirs(torch.full((len(PROMPTS), 2), 9), attention_mask=mask, past_key_values=cache)
    with pytest.raises(BackendError, match="without their gradients"):
        theirs(torch.full((1, 2), 9), past_key_values=KeptCache(Keep(100), theirs.config))
    theirs.set_attn_implementation("sdpa")
    try:
        with pytest.raises(BackendError, match="attn_implementation='limelight'"):
            generated(theirs, Keep(100))
    finally:
        theirs.set_attn_implementation("limelight")


def test_under_torch_compile_the_second_pass_is_refused(pair):
    torch.compiler.reset()
    _, theirs = pair("llama")
    compiled, cache = torch.compile(theirs, backend="eager"), KeptCache(Keep(10, 1, 3), theirs.config)
    tokens = torch.tensor(PROMPTS[0])[None]
    with torch.no_grad():
        compiled(tokens, past_key_values=cache)
        with pytest.raises(BackendError, match=r"without torch\.compile"):
            compiled(tokens, past_key_values=cache)
