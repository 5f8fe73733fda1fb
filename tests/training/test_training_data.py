"""What is read at which step: everything once an epoch, by seed and step alone, no document seen by another."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limelight.models.families import FAMILIES, Published
from limelight.tensors.shapes import ArgumentError
from limelight.training import Objective, Pairs, Texts
from limelight.training.data import documents_in, held_out, pairs_in
from limelight.training.tokenizing import special_token_ids, trained


def texts(lengths, length=5, tokens=8, seed=0):
    """Documents whose tokens are all different: document ``d`` holds ``100 d, 100 d + 1, ...``."""
    parts = [100 * d + np.arange(n, dtype=np.int32) for d, n in enumerate(lengths)]
    return Texts(np.concatenate(parts), np.cumsum([0, *lengths]), length, tokens, seed)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 3))
def test_each_token_is_foretold_once_an_epoch_from_the_one_before_it(lengths, length, seed):
    corpus = texts(lengths, length, tokens=1, seed=seed)
    for epoch in (0, 1):
        batches = [corpus.batch(epoch * corpus.per_epoch + n) for n in range(corpus.per_epoch)]
        found = sorted(int(batch.targets) for batch in batches)
        assert found == sorted(100 * d + k for d, n in enumerate(lengths) for k in range(1, n))
        assert all(batch.targets == batch.tokens + 1 for batch in batches)


@given(st.lists(st.integers(2, 60), min_size=1, max_size=8), st.integers(1, 30), st.integers(0, 50))
def test_batches_are_full_and_their_pieces_are_runs_of_one_document(lengths, length, number):
    corpus = texts(lengths, length, tokens=1 + sum(lengths) // 4 - len(lengths) // 4)
    for batch in (corpus.batch(number), *corpus.in_order()):
        assert batch.tokens.shape == batch.targets.shape
        pieces = batch.tokens[0].split(batch.layout.query_lengths)
        assert all(1 <= len(piece) <= length and (piece.diff() == 1).all() for piece in pieces)
    assert corpus.batch(number).tokens.shape == (1, corpus.tokens)
    assert sum(batch.tokens.numel() for batch in corpus.in_order()) == corpus.targets_in_order


def test_a_batch_is_a_function_of_seed_and_number():
    one, other, another = texts([50, 70]), texts([50, 70]), texts([50, 70], seed=1)
    for number in (40, 3, 17):
        assert torch.equal(one.batch(number).tokens, other.batch(number).tokens)
        assert one.batch(number).layout.query_lengths == other.batch(number).layout.query_lengths
    assert not all(torch.equal(one.batch(n).tokens, another.batch(n).tokens) for n in range(10))
    assert one.fingerprint == another.fingerprint != texts([50, 71]).fingerprint


def pairs(lengths, tokens=12, seed=0):
    targets = [100 * p + np.arange(n, dtype=np.int32) for p, n in enumerate(lengths)]
    return Pairs([target[:2] + 50 for target in targets], targets, tokens, seed)


@given(st.lists(st.integers(2, 12), min_size=1, max_size=40), st.integers(0, 3))
def test_each_pair_is_read_once_an_epoch_beside_its_source(lengths, seed):
    corpus = pairs(lengths, seed=seed)
    for batches in ([corpus.batch(corpus.per_epoch + n) for n in range(corpus.per_epoch)], corpus.in_order()):
        seen = []
        for batch in batches:
            sources = batch.source[0].split(batch.source_layout.query_lengths)
            targets = batch.tokens[0].split(batch.layout.query_lengths)
            assert all(source[0] // 100 == target[0] // 100 for source, target in zip(sources, targets, strict=True))
            assert torch.equal(batch.targets, batch.tokens + 1)
            seen += [int(target[0]) // 100 for target in targets]
        assert sorted(seen) == list(range(len(lengths)))
    for number in range(corpus.per_epoch):
        assert corpus.targets_of(number) == corpus.batch(number).targets.numel()


NETWORKS = {
    "llama": {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2},
    "marian": {
        "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    },
}  # fmt: skip


def made(kind):
    torch.manual_seed(0)
    values = {**NETWORKS[kind], "vocab_size": 900, "dropout": 0.0}
    return FAMILIES[kind].shape(FAMILIES[kind].configure(Published("test", values))).double()


@pytest.mark.parametrize("kind", NETWORKS)
def test_no_token_sees_another_document(kind):
    network = made(kind)
    corpus = texts([9, 7, 8], length=9, tokens=21) if kind == "llama" else pairs([9, 7, 8], tokens=21)
    batch = corpus.in_order()[0]
    objective = Objective(network)
    table = network.embedding.tokens.weight
    documents = torch.arange(len(table)) // 100

    def states():
        source = {} if batch.source is None else {"source": batch.source, "source_layout": batch.source_layout}
        return network(batch.tokens, layout=batch.layout, logits=False, **source).states[0]

    whole = objective(batch)
    parts = []
    for document, place in enumerate(torch.arange(21).split(batch.layout.query_lengths)):
        (gradient,) = torch.autograd.grad(states()[place].square().sum(), table)
        assert (gradient[documents != document] == 0).all()
        assert (gradient[documents == document] != 0).any()
        asked = batch._replace(targets=torch.full_like(batch.targets, -100))
        asked.targets[0, place] = batch.targets[0, place]
        parts.append(objective(asked))
        with torch.no_grad():
            kept, expected = table.clone(), states()[place]
            table[documents != document] = torch.nan
            found = states()
            table.copy_(kept)
        assert torch.equal(found[place], expected)
        assert found.isnan().any()
    torch.testing.assert_close(sum(parts), whole)


def test_a_document_alone_has_the_same_loss():
    network = made("llama")
    together = Objective(network)(texts([9, 7, 8], length=9, tokens=21).in_order()[0])
    alone = 0.0
    for d, n in enumerate((9, 7, 8)):
        ids = torch.arange(100 * d, 100 * d + n)[None]
        logits = network(ids[:, :-1]).logits
        alone += torch.nn.functional.cross_entropy(logits[0], ids[0, 1:], reduction="sum")
    torch.testing.assert_close(together, alone)


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n\n\ntwo\n\n\n\n \n\n\n\nthree")
    assert documents_in(tmp_path / "a.txt", "\n\n\n\n") == ["one", "two", "three"]
    assert len(documents_in(tmp_path / "a.txt", "")) == 1
    (tmp_path / "a.tsv").write_text("one\tuno\n\ntwo\tdos\r\n")
    assert pairs_in(tmp_path / "a.tsv") == [("one", "uno"), ("two", "dos")]
    (tmp_path / "b.tsv").write_text("one\tuno\ntwo dos\n")
    with pytest.raises(ArgumentError, match="line 2 of"):
        pairs_in(tmp_path / "b.tsv")
    with pytest.raises(ArgumentError, match=r"run.batch_tokens.*no more than the tokens of the text"):
        texts([3], tokens=3).batch(0)


def test_held_out():
    assert held_out(100, 0.02).sum() == 2
    assert held_out(3, 0.02).tolist() == [False, False, True]
    assert not held_out(100, 0.0).any()
    assert not held_out(1, 0.5).any()


@pytest.mark.parametrize("kind", ["characters", "byte-pair"])
@pytest.mark.parametrize("task", ["language", "translation"])
def test_tokenizers_give_the_text_back(kind, task):
    text = "The bank is near the river.\n\n  ¿Dónde está?\t“Aquí”, dijo.\n"
    tokenizer = trained(kind, 300, [text], task=task)
    special = special_token_ids(task=task)
    read = tokenizer.read(text)
    assert tokenizer.write(read.ids) == text
    assert sum(read.special) == 1
    assert (
        read.ids[0 if task == "language" else -1] == special["bos_token_id" if task == "language" else "eos_token_id"]
    )
    assert tokenizer.size <= 300
    assert len(set(special.values())) == 3
    if kind == "characters":
        assert len(read) == len(text) + 1
        assert tokenizer.read("Ж").tokens[0 if task == "translation" else 1] == "<unk>"
