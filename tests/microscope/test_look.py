"""The microscope on real models, by the facts that are known of them."""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
import torch
from support.made_up import OTHER, SENTENCE

from limelight import ArgumentError
from limelight.generation import Greedy
from limelight.microscope import look, make_page, write_page
from limelight.microscope.reading.relations import given

DOG = "The dog ran around the park because it was {}."


def test_bank_looks_at_river(minilm):
    report = look(minilm, SENTENCE, words=["bank"])
    row = next(row for row in report.tables["relations"] if row["other"] == "river" and row["direction"] == "looks at")
    assert (row["layer"], row["weight"], row["uniform"]) == (0, pytest.approx(0.64, abs=0.005), pytest.approx(1 / 9))
    assert row is report.tables["relations"][0]
    assert row["offset"] == 4
    assert row["lift"] == pytest.approx(6.6, abs=0.05)
    last = [row for row in report.tables["relations"] if row["direction"] == "looks at"][-1]
    assert (last["other"], last["positional"], round(last["weight"], 2)) == ("The", True, 1.0)
    assert not row["lower_bound"]


def test_a_report_prints_itself_in_a_line(minilm):
    assert repr(look(minilm, SENTENCE, words=["bank"])) == f"Report('minilm', {SENTENCE!r}, words='bank')"
    assert len(repr(look(minilm, " ".join([SENTENCE, OTHER] * 20), compare=OTHER))) < 300


def test_a_model_of_another_library_is_refused_with_words():
    with pytest.raises(ArgumentError, match=r"`model` must be .* it is a Linear of torch.*tokenizer=tokenizer"):
        look(torch.nn.Linear(2, 2), SENTENCE)
    with pytest.raises(ArgumentError, match=r"`words` must be a list"):
        look("minilm", SENTENCE, words="bank")


def test_unknown_tokens(minilm, smollm2):
    report = look(minilm, "x" * 300 + " bank 🌊", compare="bank")
    assert [row["token"] for row in report.tables["tokens"] if row["unknown"]] == ["[UNK]", "[UNK]"]
    assert report.warnings == [
        "Text 1: 2 of 5 tokens are unknown ([UNK]): the model sees that there is a token, but not which."
    ]
    assert report.warnings[0] in report.notes
    assert look(smollm2, "🌊 bank").warnings == []  # bytes stand for everything


def test_a_page_holds_no_character_that_no_figure_may_hold(minilm):
    page = make_page(look(minilm, "the\x00bank\x01\ufffe"))
    assert not {*"\x00\x01"} & {*page}
    data = page.split('id="limelight-data"')[1].split("</script>")[0]
    assert "\\u0000" not in data
    assert "\\u0001" not in data
    assert "\u2400" in data


def test_bank_in_two_contexts(minilm):
    report = look(minilm, SENTENCE, compare=OTHER)
    assert [report.readings[0].words[n].text for n in report.chosen[0]] == ["bank"]
    cosine = [row["cosine"] for row in report.tables["contexts"] if row["word"] == "bank"]
    assert cosine[0] == pytest.approx(0.96, abs=0.005)
    assert cosine[3] == pytest.approx(0.84, abs=0.005)
    assert all(row["different_words"] < 0.4 for row in report.tables["contexts"])


def test_it_is_the_dog_or_the_park(minilm):
    means = {}
    for mood in ("excited", "open"):
        reading = look(minilm, DOG.format(mood), words=["it"]).readings[0]
        weights = given(reading, reading.find("it")[0]).mean(axis=1)[3]  # the fourth layer, mean over its heads
        means[mood] = [round(float(weights[reading.find(name)[0]]), 3) for name in ("dog", "park")]
    assert means == {"excited": [0.095, 0.050], "open": [0.059, 0.082]}
    report = look(minilm, DOG.format("excited"), compare=DOG.format("open"))
    assert "it" in [report.readings[0].words[n].text for n in report.chosen[0]]
    found = {(row["other"], row["layer"], row["head"]): row for row in report.tables["changes"] if row["word"] == "it"}
    dog, park = found["dog", 3, 1], found["park", 3, 1]
    assert (dog["first"], dog["second"]) == (pytest.approx(0.42, abs=0.005), pytest.approx(0.05, abs=0.005))
    assert (park["first"], park["second"]) == (pytest.approx(0.11, abs=0.005), pytest.approx(0.45, abs=0.005))
    assert all(abs(row["second"] - row["first"]) >= max(0.05, 3 * row["noise"]) for row in found.values())
    contrast = report.tables["contrasts"][0]
    assert (contrast["first_other"], contrast["second_other"]) == ("excited", "open")


def test_tables_say_what_they_are_made_of(minilm):
    report = look(minilm, SENTENCE)
    tables = json.loads(report.to_json())["tables"]
    assert len(tables["heads"]) == 72
    assert len(tables["tokens"]) == 9
    assert [row["token"] for row in tables["tokens"] if row["special"]] == ["[CLS]", "[SEP]"]
    received = np.array([row["received"] for row in tables["tokens"]])
    assert received.mean() == pytest.approx(1.0, abs=1e-4)
    assert all(0 <= row["entropy"] <= row["entropy_uniform"] + 1e-5 for row in tables["heads"])
    assert {row["queries"] for row in tables["heads"]} == {9}
    reading = report.readings[0]
    np.testing.assert_allclose(reading.shares.sum(-1), 1.0, atol=1e-5)
    hidden = minilm(SENTENCE, hidden=True).hidden
    cosine = torch.cosine_similarity(hidden[4][0, 2], hidden[0][0, 2], dim=0)
    assert reading.path[4, reading.find("bank")[0]] == pytest.approx(float(cosine), abs=1e-5)


def test_a_long_text_agrees_with_exact_weights(minilm, monkeypatch):
    """The same text, kept as blocks and strongest keys, and kept exactly."""
    text = " ".join([SENTENCE, OTHER, DOG.format("excited"), DOG.format("open")] * 2)
    exact = look(minilm, text).readings[0]
    module = sys.modules["limelight.microscope.reading.gathering"]
    monkeypatch.setattr(module, "EXACT_WEIGHTS", 0)
    monkeypatch.setattr(module, "BLOCKS", 16)
    long = look(minilm, text).readings[0]
    assert exact.exact
    assert not long.exact
    size = long.block
    np.testing.assert_allclose(long.shares, joined(exact.shares, size), atol=2e-5)
    for name in exact.heads.__dataclass_fields__:
        np.testing.assert_allclose(getattr(long.heads, name), getattr(exact.heads, name), atol=2e-4, err_msg=name)
    best = exact.shares.max(-1)
    np.testing.assert_allclose(long.top_weights[..., 0], best, atol=2e-5)
    only = np.zeros_like(exact.shares)
    only[..., list(exact.apart)] = exact.shares[..., list(exact.apart)]
    np.testing.assert_allclose(long.apart_shares, joined(only, size), atol=2e-5)
    assert_refined(long, exact.shares, only)
    np.testing.assert_allclose(long.path, exact.path, atol=1e-5)
    assert len(make_page(look(minilm, text)).encode()) < 3_000_000


def joined(weights, size):
    """Blocks of single weights: the sum over their keys, the mean over their queries."""
    starts = np.arange(0, weights.shape[-1], size)
    rows = np.add.reduceat(np.add.reduceat(weights, starts, -1), starts, -2)
    return rows / np.minimum(size, weights.shape[-1] - starts)[:, None]


def assert_refined(long, weights, apart):
    """Every fine block that is kept is that of the exact weights, and those of one cell add up to it."""
    fine, side = long.refinement, long.shares.shape[-1]
    factor = long.block // fine.block
    assert factor > 1
    short = side * factor - -(-long.length // fine.block)
    wholes = [np.pad(joined(each, fine.block), ((0, 0), (0, 0), (0, short), (0, short))) for each in (weights, apart)]
    assert (fine.cells >= 0).any(-1).all()
    for layer, head, place in zip(*np.nonzero(fine.cells >= 0), strict=True):
        row, column = divmod(int(fine.cells[layer, head, place]), side)
        at = (layer, head, slice(row * factor, (row + 1) * factor), slice(column * factor, (column + 1) * factor))
        for found, whole in zip((fine.shares, fine.apart), wholes, strict=True):
            np.testing.assert_allclose(found[layer, head, place], whole[at], atol=2e-5)
    for cells in fine.cells.reshape(-1, fine.cells.shape[-1]):
        assert len({*cells.tolist()} - {-1}) == (cells >= 0).sum()


def test_a_decoder_has_a_sink(smollm2):
    report = look(smollm2, "The bank of the river was covered with flowers, and the boat stood on the shore.")
    reading = report.readings[0]
    assert report.model.kind == "decoder"
    assert reading.apart == (0,)
    assert report.tables["tokens"][0]["sink"]
    assert np.triu(reading.shares[0, 0], 1).max() == 0.0
    assert reading.heads.next.max() == 0.0
    assert all(row["other"] != "The" for row in report.tables["relations"])
    rows = look(smollm2, reading.text, special=True).tables["relations"]
    assert {row["other_kind"] for row in rows if row["other"] == "The"} == {"sink"}


@pytest.mark.parametrize("text", ["", "   ", "\n"])
def test_an_empty_text_is_refused(minilm, text):
    with pytest.raises(ArgumentError, match="at least one word"):
        look(minilm, text)


def test_a_word_that_is_not_there(minilm):
    with pytest.raises(ArgumentError, match=r"`words` must .* 'shore' is not.*The, bank, is"):
        look(minilm, SENTENCE, words=["shore"])


def test_what_is_no_word_and_what_belongs_to_writing(minilm):
    with pytest.raises(ArgumentError, match="`words` must be a list of words, but it holds 3"):
        look(minilm, SENTENCE, words=[3])
    for name, value in {"seed": 1, "sampler": Greedy()}.items():
        with pytest.raises(ArgumentError, match=f"`{name}` belongs to generate"):
            look(minilm, SENTENCE, **{name: value})
    with pytest.raises(ArgumentError, match=r"`compare` must be characters that UTF-8 can write"):
        look(minilm, SENTENCE, compare="half \ud83d")


def test_a_folder_that_is_not_there_is_named(minilm, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder: '.*missing'$"):
        write_page(look(minilm, "A bank."), tmp_path / "missing" / "page.html")


def test_too_long_a_text_is_refused(minilm):
    with pytest.raises(ArgumentError, match="`text` must fit the 512 positions of minilm, but it has 602 tokens"):
        look(minilm, "river " * 600)
    with pytest.raises(ArgumentError, match="`compare` must fit the 512 positions"):
        look(minilm, SENTENCE, compare="river " * 600)
    with pytest.raises(ArgumentError, match="`compare` must hold at least one word"):
        look(minilm, SENTENCE, compare=" ")


def test_computed_positions_go_beyond_those_of_the_training(smollm2, monkeypatch):
    """The weights are those of a model without a limit; a plain run and generation keep theirs."""
    text = "The bank of the river was covered with flowers, and the boat stood on the shore."
    free = look(smollm2, text)
    assert free.warnings == []
    monkeypatch.setattr(smollm2.network, "config", dataclasses.replace(smollm2.network.config, limit=8))
    report = look(smollm2, text)
    np.testing.assert_array_equal(report.readings[0].shares, free.readings[0].shares)
    (warning,) = report.warnings
    assert re.match(r"The text has 18 tokens, but smollm2 was trained on at most 8 positions", warning)
    assert warning in report.to_dict()["notes"]
    ids = torch.tensor([[token + 5 for token in range(9)]])
    with pytest.raises(ArgumentError, match="must fit the 8 positions"):
        smollm2.network(ids)
    assert smollm2.network(ids, extrapolate=True).states.shape[1] == 9
    for call in (lambda: smollm2.generate(text, tokens=2), lambda: look(smollm2, text, generate=2)):
        with pytest.raises(ArgumentError, match="positions"):
            call()


def test_a_table_of_positions_has_no_more_than_its_rows(minilm):
    assert minilm.network.learned_positions
    with pytest.raises(ArgumentError, match="must fit the 512 positions"):
        minilm.network(torch.zeros(1, 513, dtype=torch.int64), extrapolate=True)


@pytest.mark.parametrize("text", ["?", "🌊", "</script><b>[bold]", "a\tb\n\nc", "河边的银行", "x" * 200, "word"])
def test_odd_texts_are_read(minilm, text):
    report = look(minilm, text, compare="a bank.")
    assert report.to_json()
    assert make_page(report)
