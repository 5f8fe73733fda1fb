"""Key rules read in both directions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limelight.formats.rules import AsItIs, KeyRule, KeyRules, PairedHalves, Renamed, Transposed, Unused
from limelight.models.families import BERT, FAMILIES, LLAMA, Published

PUBLISHED = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 12,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
}


def network(family, **more):
    with torch.device("meta"):
        return family.shape(family.configure(Published("config.json", PUBLISHED | more)))


@pytest.mark.parametrize("gguf", [False, True])
@pytest.mark.parametrize(
    ("family", "more"),
    [
        (BERT, {}),
        (BERT, {"architectures": ["BertForMaskedLM"]}),
        (BERT, {"architectures": ["BertForSequenceClassification"]}),
        (LLAMA, {"architectures": ["LlamaModel"]}),
        (LLAMA, {}),
        (LLAMA, {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ],
)
def test_every_parameter_has_a_published_name_and_comes_back(family, more, gguf):
    if gguf and family.gguf is None:
        assert family.name == "bert"
        return
    made = network(family, **more)
    rules = (family.gguf.rules if gguf else family.rules)(made.config)
    names = {name: rules.published(name) for name in made.state_dict()}
    assert all(names.values()), [name for name, renamed in names.items() if not renamed]
    assert len({(renamed.key, renamed.part) for renamed in names.values()}) == len(names)
    for name, renamed in names.items():
        for spelled in (renamed.key, renamed.key.removeprefix(rules.prefix)):
            assert renamed._replace(key=name) in rules.ours(spelled)


def test_families_are_found_by_their_published_name():
    assert all(family.name == name for name, family in FAMILIES.items())
    assert (FAMILIES["bert"], FAMILIES["llama"]) == (BERT, LLAMA)


def test_parts_of_one_tensor():
    parts = [KeyRule("qkv.{p}", f"{name}.{{p}}", Transposed(), (n, n + 1, 3)) for n, name in enumerate("qkv")]
    rules = KeyRules(*parts)
    stored = torch.arange(12.0).reshape(2, 6)
    found = rules.ours("qkv.weight")
    assert [renamed.key for renamed in found] == ["q.weight", "k.weight", "v.weight"]
    for number, renamed in enumerate(found):
        assert torch.equal(renamed.read(stored), stored.T[2 * number : 2 * number + 2])
        assert torch.equal(renamed.read(torch.arange(6)), torch.arange(2 * number, 2 * number + 2))
        assert rules.published(renamed.key) == renamed._replace(key="qkv.weight")


def test_parts_of_different_sizes():
    rules = KeyRules(*(KeyRule("qkv.{p}", f"{name}.{{p}}", part=part) for name, part in UNEQUAL.items()))
    found = rules.ours("qkv.weight")
    assert [renamed.read(torch.arange(16)).tolist() for renamed in found] == [
        [*range(8)],
        [*range(8, 12)],
        [*range(12, 16)],
    ]
    with pytest.raises(IndexError, match="15 rows do not make 4 equal parts"):
        found[0].read(torch.arange(15))


UNEQUAL = {"q": (0, 2, 4), "k": (2, 3, 4), "v": (3, 4, 4)}


def test_the_first_rule_that_fits_wins():
    rules = KeyRules(
        KeyRule("a.{n}.{p}", "x.{n}.{p}"),
        KeyRule("old.{n}.{p}", "x.{n}.{p}"),
        Unused("a.{any}", "no use"),
    )
    assert rules.ours("a.3.weight") == rules.ours("old.3.weight") == (Renamed("x.3.weight", AsItIs()),)
    assert rules.published("x.3.weight").key == "a.3.weight"
    assert rules.ours("a.3.other") == Unused("a.{any}", "no use")
    assert rules.ours("b") is None
    assert rules.published("y") is None


@pytest.mark.parametrize("bare", [False, True])
def test_a_prefix_is_there_or_not(bare):
    rules = KeyRules(KeyRule("model.a.{p}", "x.{p}"), KeyRule("head.{p}", "y.{p}"), prefix="model.", bare=bare)
    assert rules.ours("a.bias") == rules.ours("model.a.bias") == (Renamed("x.bias", AsItIs()),)
    assert rules.ours("head.bias")[0].key == "y.bias"
    assert rules.ours("model.head.bias") is None
    assert rules.published("x.bias").key == ("a.bias" if bare else "model.a.bias")
    assert rules.published("y.bias").key == "head.bias"


def test_a_field_is_a_number_or_a_part_and_text_is_text():
    rules = KeyRules(KeyRule("a.{n}.b.{p}", "x.{n}.{p}"))
    for key in ("a.b.b.weight", "a.3.b.scale", "a.3xb.weight", "a.3.b.weight.more", "za.3.b.weight"):
        assert rules.ours(key) is None


@given(heads=st.integers(1, 6), half=st.integers(1, 5), columns=st.integers(0, 4))
def test_paired_halves(heads, half, columns):
    shape = (heads * 2 * half, *([columns] if columns else []))
    stored = torch.arange(torch.Size(shape).numel()).reshape(shape)
    change = PairedHalves(heads)
    read = change.read(stored)
    assert torch.equal(change.write(read), stored)
    assert torch.equal(change.read(change.write(stored)), stored)
    # the row that stood as number i of pair (a, b) is row i of the first or second half of its head
    for head in range(heads):
        for i in range(half):
            first = head * 2 * half
            assert torch.equal(read[first + i], stored[first + 2 * i])
            assert torch.equal(read[first + half + i], stored[first + 2 * i + 1])
