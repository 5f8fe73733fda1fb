"""Calls without a mask whose positions begin again, as DeepSpeed's Ulysses makes them: documents, never joined."""

from types import SimpleNamespace

import pytest
import torch
from support.families import DECODERS
from transformers import AttentionInterface

import limelight
from limelight import BackendError
from limelight.integrations.transformers import account, attend

LENGTH = 24
#: The positions of the tokens of one batch row.
ROWS = {
    "documents": [*range(5), *range(1), *range(8), *range(10)],
    "other documents": [*range(11), *range(11), 0, 1],
    "begins in the middle of a document": [*range(7, 19), *range(12)],
    "one text": [*range(24)],
    "a later part of a text": [*range(100, 124)],
    "places left out": [*range(10), *range(20, 34)],
}
LEFT_PADDED = [1, 1, 1, *range(21)]


def handed_on(module, query, key, value, attention_mask, **others):
    """A core of attention that gets no mask from the model and hands on what it gets."""
    assert attention_mask is None
    return attend(module, query, key, value, None, **others)


AttentionInterface.register("handed on", handed_on)  # without a mask function: models then make no mask


def blocks(positions):
    """``(B, 1, L, L)`` bool: causal, and within a document."""
    document = torch.nn.functional.pad((positions.diff(dim=1) <= 0).cumsum(1), (1, 0))
    return (document[:, None, :, None] == document[:, None, None]) & torch.ones(LENGTH, LENGTH).tril().bool()


@pytest.mark.parametrize("name", ["llama", "mistral, window 4"])
@pytest.mark.parametrize(
    "rows",
    [
        *[[name] for name in ROWS],
        ["documents", "documents"],
        ["documents", "other documents"],
        ["documents", "one text"],
    ],
    ids="; ".join,
)
def test_logits_and_gradients_are_those_of_the_block_diagonal_mask(name, rows):
    model = DECODERS[name].build()
    tokens = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    positions = torch.tensor([ROWS[row] for row in rows])
    seen = blocks(positions)
    if name != "llama":
        seen = seen & torch.ones(LENGTH, LENGTH).triu(-3).bool()
    found = []
    masks = {"eager": torch.where(seen, 0.0, torch.finfo(torch.float32).min).expand(2, -1, -1, -1), "handed on": None}
    for implementation, mask in masks.items():
        model.set_attn_implementation(implementation)
        given = {"position_ids": positions, "attention_mask": mask, "use_cache": False}
        logits = model(tokens, **given).logits
        found.append([logits, *torch.autograd.grad(logits.square().mean(), list(model.parameters()))])
    for ours, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_layouts_are_made_once_and_positions_are_read_again_when_they_change():
    model = DECODERS["llama"].build()
    model.set_attn_implementation("handed on")
    tokens, positions = torch.full((1, LENGTH), 5), torch.tensor([ROWS["documents"]])
    with torch.no_grad():
        with account() as calls:
            model(tokens, position_ids=positions, use_cache=False)
        assert list(calls.taken) == ["Causal() under Packed"]
        positions[0] = torch.arange(LENGTH)
        with account() as calls:
            model(tokens, position_ids=positions, use_cache=False)
        assert list(calls.taken) == ["Causal() under Aligned"]
    with torch.inference_mode(), account() as calls:
        model(tokens, position_ids=torch.tensor([ROWS["documents"]]), use_cache=False)
    assert list(calls.taken) == ["Causal() under Packed"]


def test_left_padding_is_apart_from_the_text():
    model = DECODERS["llama"].build()
    tokens = torch.randint(3, 60, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    found = []
    with torch.no_grad():
        for implementation, given in (("eager", mask), ("handed on", None)):
            model.set_attn_implementation(implementation)
            positions = torch.tensor([LEFT_PADDED])
            found.append(model(tokens, position_ids=positions, attention_mask=given, use_cache=False).logits[:, 3:])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def call(Lq, Lk, positions, **others):
    query, key = (torch.randn(2, 2, L, 8, generator=torch.Generator().manual_seed(L)) for L in (Lq, Lk))
    module = SimpleNamespace(is_causal=True, training=False)
    given = None if positions is None else torch.tensor(positions)
    return attend(module, query, key, key, None, position_ids=given, **others)[0]


@pytest.mark.parametrize(
    ("Lq", "Lk", "positions"),
    [(1, 9, [[8], [4]]), (3, 9, [[6, 7, 8]]), (3, 3, [[[0, 1, 0]], [[0, 0, 0]], [[0, 0, 1]]])],
    ids=["a token after a cache", "a part after a cache", "positions in three dimensions"],
)
def test_other_positions_keep_their_meaning(Lq, Lk, positions):
    assert torch.equal(call(Lq, Lk, positions), call(Lq, Lk, None))


def test_encoders_have_documents_too():
    ours = call(5, 5, [[0, 1, 0, 1, 2]], is_causal=False)
    query = torch.randn(2, 2, 5, 8, generator=torch.Generator().manual_seed(5))
    expected = limelight.attention(query, query, query, layout=limelight.Packed((2, 3))).transpose(1, 2)
    assert torch.equal(ours, expected)


@pytest.mark.parametrize(("Lq", "Lk", "rows", "n"), [(4, 9, 1, 4), (9, 9, 1, 4), (9, 9, 3, 9)])
def test_documents_of_unknown_keys_are_refused(Lq, Lk, rows, n):
    positions = [[*range(n - 2), 0, 1]] * rows
    with pytest.raises(BackendError, match=r"position_ids.*begin again.*Give an attention_mask"):
        call(Lq, Lk, positions)
