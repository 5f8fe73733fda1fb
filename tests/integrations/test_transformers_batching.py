"""Texts of continuous batching: queries and keys end to end, which ``cu_seq_lens`` divide, without a mask.

`generate_batch` itself needs transformers 5.24; where that is installed, its tokens are compared with those of eager.
"""

from types import SimpleNamespace

import pytest
import torch
import transformers
from support.families import DECODERS

import limelight
from limelight import BackendError, Causal, Packed
from limelight.integrations.transformers import attend, enable_batching

QUERIES, KEYS = (1, 4, 3, 1), (9, 4, 8, 1)  # a next token, a prompt, a part of a prompt, a prompt of one token
SINCE = (5, 24)
THERE = tuple(map(int, transformers.__version__.split(".")[:2])) >= SINCE


def starts(lengths, dtype=torch.int32):
    return torch.tensor([0, *lengths], dtype=dtype).cumsum(0, dtype=dtype)


def call(query, key, **others):
    module = SimpleNamespace(is_causal=True, training=False)
    return attend(module, query, key, key, None, is_causal=True, **others)[0].transpose(1, 2)


def tensors(queries=9, keys=22):
    torch.manual_seed(0)
    return torch.randn(1, 4, queries, 8), torch.randn(1, 2, keys, 8)


@pytest.mark.parametrize("window", [None, 3])
def test_each_text_as_if_it_were_alone(window):
    query, key = tensors()
    found = call(query, key, cu_seq_lens_q=starts(QUERIES), cu_seq_lens_k=starts(KEYS), sliding_window=window)
    texts = zip(query.split(QUERIES, 2), key.split(KEYS, 2), strict=True)
    for output, (q, k) in zip(found.split(QUERIES, 2), texts, strict=True):
        back = (k.shape[2] - q.shape[2] + torch.arange(q.shape[2]))[:, None] - torch.arange(k.shape[2])
        seen = (back >= 0) & (back < (window or 99))
        both = k.repeat_interleave(2, 1)
        expected = torch.where(seen, q @ both.mT / 8**0.5, -torch.inf).softmax(-1) @ both
        torch.testing.assert_close(output, expected)


def test_one_text_of_one_token_keeps_its_window():
    query, key = tensors(1, 9)
    found = call(query, key, cu_seq_lens_q=starts([1]), cu_seq_lens_k=starts([9]), sliding_window=3)
    torch.testing.assert_close(found, call(query, key[:, :, 6:]))


def test_padding_changes_nothing():
    query, key = tensors()
    lengths = {"cu_seq_lens_q": starts(QUERIES), "cu_seq_lens_k": starts(KEYS)}
    more = [torch.nn.functional.pad(x, (0, 0, 0, n), value=torch.nan) for x, n in ((query, 5), (key, 2))]
    padded = call(*more, **lengths)
    torch.testing.assert_close(padded[:, :, : query.shape[2]], call(query, key, **lengths))
    assert not padded[:, :, query.shape[2] :].isnan().any()


def test_lengths_that_are_changed_in_place_are_read_again():
    query, key = tensors(6, 6)
    lengths = starts([2, 4])
    first = call(query, key, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)
    lengths[1] = 5
    second = call(query, key, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths)
    assert not torch.equal(first, second)
    expected = limelight.attention(query, key, key, layout=Packed((5, 1)), pattern=Causal())
    torch.testing.assert_close(second, expected)


@pytest.mark.parametrize(
    ("queries", "keys", "message"),
    [
        (starts([6]), None, "needs both as tensors.*transformers 5.24"),
        (starts([6]), {"full_attention": starts([6])}, "needs both as tensors.*transformers 5.24"),
        (starts([7]), starts([6]), "1 and 1 documents of 7 queries and 6 keys, but there are 6 queries and 6 keys"),
        (starts([3, 3]), starts([6]), "2 and 1 documents"),
    ],
)
def test_what_is_refused(queries, keys, message):
    with pytest.raises(BackendError, match=message):
        call(*tensors(6, 6), cu_seq_lens_q=queries, cu_seq_lens_k=keys)


@pytest.mark.skipif(THERE, reason="this transformers has it")
def test_an_earlier_transformers_is_named():
    with pytest.raises(BackendError, match=r"enable_batching needs transformers 5\.24 or later, but 5\."):
        enable_batching()


@pytest.mark.skipif(not THERE, reason="generate_batch takes other implementations since transformers 5.24")
@pytest.mark.parametrize("name", ["llama", "mistral, window 4", "gemma2"])
def test_generate_batch(name):
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    enable_batching()
    enable_batching()
    model = DECODERS[name].build()
    model.config.eos_token_id = None
    prompts = [torch.randint(3, 60, (n,)).tolist() for n in (5, 30, 12, 1, 20)]
    settings = transformers.GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    model.set_attn_implementation("eager")
    plain = [model.generate(torch.tensor([p]), generation_config=settings)[0, len(p) :].tolist() for p in prompts]
    model.set_attn_implementation("limelight")
    sizes = ContinuousBatchingConfig(num_blocks=64, page_size=16, max_batch_tokens=32)
    found = model.generate_batch(prompts, generation_config=settings, continuous_batching_config=sizes)
    by_number = sorted(found.values(), key=lambda output: int(output.request_id.rpartition("_")[2]))
    assert [output.generated_tokens for output in by_number] == plain
