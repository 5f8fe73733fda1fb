"""What a decoder wrote: probabilities, candidates and the logit lens, against a plain computation in float64."""

import inspect
import json
import re

import numpy as np
import pytest
import torch
from support.families import DECODERS
from support.made_up import SENTENCE, mock_report
from support.observed import drawn
from typer.testing import CliRunner

from limelight import ArgumentError
from limelight.cli import app
from limelight.generation import Beam, Greedy, Sample
from limelight.microscope import look, write_page
from limelight.microscope.page.numbers import pack_numbers
from limelight.microscope.page.pack_writing import pack_predictions
from limelight.microscope.subjects import Subject, subject_of
from limelight.microscope.subjects.transformers import TransformersSubject
from limelight.microscope.writing.predictions import Predictions

PROMPT = "The capital of France is"


def plainly(model, ids):
    """Log-probabilities at each depth and position, ``(N + 1, L, V)`` float64, layer by layer from the definition."""
    network = model.network
    hidden = model(torch.tensor([ids]), hidden=True, logits=False).hidden
    scale = network.norm.weight.double()
    table = network.embedding.tokens.weight.double()
    found = []
    for depth, states in enumerate(hidden):
        row = states[0].double()
        if depth < len(hidden) - 1:
            row = row / (row.square().mean(-1, keepdim=True) + network.norm.epsilon).sqrt() * scale
        found.append((row @ table.T).log_softmax(-1))
    return torch.stack(found)


@pytest.fixture(scope="module")
def france(smollm2):
    return look(smollm2, PROMPT, generate=2)


def test_the_capital_of_france(france):
    assert france.readings[0].text == f"{PROMPT} Paris."
    first, second = france.tables["predictions"]
    assert (first["token"], first["rank"], first["written"]) == ("Paris", 1, True)
    assert (second["token"], second["rank"], second["written"]) == (".", 1, True)
    best = france.tables["candidates"][0]
    assert (best["candidate"], best["chosen"]) == (" Paris", True)


def test_candidates_and_lens_equal_a_plain_computation(smollm2, france):
    ids = [*smollm2.read(PROMPT).texts[0].ids, *smollm2.generate(PROMPT, tokens=2)[0].ids]
    expected = plainly(smollm2, ids)
    (found,) = france.predictions
    assert (found.first, found.written, len(found)) == (len(ids) - 2, len(ids) - 2, 2)
    for number in range(2):
        position = found.first + number
        rows = expected[:, position - 1]  # (N + 1, V)
        own = rows[:, ids[position]].exp().numpy()
        np.testing.assert_allclose(found.layer_probability[number], own, rtol=2e-3, atol=1e-12)
        assert found.layer_rank[number].tolist() == [int((row > row[ids[position]]).sum()) + 1 for row in rows]
        assert found.candidates[number].tolist() == rows[-1].topk(8).indices.tolist()
        np.testing.assert_allclose(found.shares[number], rows[-1].topk(8).values.exp(), rtol=1e-3)
        assert found.probability[number] == pytest.approx(own[-1], rel=1e-3)
        assert found.entropy[number] == pytest.approx(float(-(rows[-1].exp() * rows[-1]).sum()), rel=1e-4)
        top = rows.topk(3).values.exp().numpy()
        np.testing.assert_allclose(found.layer_shares[number], top, rtol=2e-3, atol=1e-9)


def test_every_token_of_a_text(smollm2, monkeypatch):
    monkeypatch.setattr("limelight.microscope.writing.predictions.CHUNK", 3 * 49152)  # three tokens at once
    text = "The bank of the river was covered with flowers."
    report = look(smollm2, text, lens=True)
    ids = smollm2.read(text).texts[0].ids
    rows = report.tables["predictions"]
    assert [row["index"] for row in rows] == list(range(1, len(ids) + 1))
    logits = smollm2(text).logits[0].double().log_softmax(-1)
    for row in rows[:-1]:
        assert row["probability"] == pytest.approx(float(logits[row["index"] - 1, ids[row["index"]]].exp()), rel=1e-3)
        assert not row["written"]
    assert (rows[-1]["token"], rows[-1]["probability"], rows[-1]["rank"]) == (None, None, None)
    following = smollm2.generate(text, tokens=1)[0].ids[0]
    candidates = [row for row in report.tables["candidates"] if row["index"] == len(ids)]
    assert candidates[0]["id"] == following
    lens = report.to_pandas("lens")
    assert len(lens) == len(ids) * 31
    assert report.to_arrow("lens").num_rows == len(lens)
    last = lens[lens["depth"] == 30]
    assert [tops[0] for tops in last["top"]] == [
        row["candidate"] for row in report.tables["candidates"] if row["rank"] == 1
    ]


def test_observations_are_those_of_the_whole_text(smollm2, france):
    whole = look(smollm2, f"{PROMPT} Paris.")
    np.testing.assert_allclose(france.readings[0].shares, whole.readings[0].shares, atol=1e-6)
    before = look(smollm2, PROMPT).readings[0]
    length = before.length
    np.testing.assert_allclose(france.readings[0].shares[:, :, :length, :length], before.shares, atol=1e-5)
    assert [(t.text, t.start, t.end) for t in france.readings[0].tokens] == [
        (t.text, t.start, t.end) for t in whole.readings[0].tokens
    ]


def test_sampling_is_reproducible(smollm2):
    texts = [look(smollm2, PROMPT, generate=6, sampler=Sample(), seed=seed).readings[0].text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert texts[0] == PROMPT + smollm2.generate(PROMPT, Sample(), tokens=6, seed=1)[0].text


def test_reading_again_for_every_token_writes_the_same(smollm2):
    """The definition of `Subject.generate`, over a whole text for every token."""
    subject = subject_of(smollm2)
    ids = subject.tokenize(PROMPT).ids
    for sampler in (Greedy(), Greedy(repetition=1.3), Sample(top_k=20)):
        assert Subject.generate(subject, ids, 4, sampler, 3) == subject.generate(ids, 4, sampler, 3)


def lengths_read(subject, monkeypatch):
    """The number of tokens of each run of a subject of transformers, as they are added."""
    lengths = []
    run = subject._observed

    def observed(module, inputs, hidden):
        lengths.append(inputs["input_ids"].shape[1])
        return run(module, inputs, hidden)

    monkeypatch.setattr(subject, "_observed", observed)
    return lengths


CACHES = (
    "gpt2",
    "mistral, window 4",
    "gemma3",
    "gpt_oss, sinks",
    "llama4, chunks of 4",
    "deepseek_v3",
    "jamba",
    "lfm2",
)


@pytest.mark.parametrize("family", CACHES)
def test_a_model_of_transformers_reads_each_token_once(family, monkeypatch):
    subject = TransformersSubject(DECODERS[family].build())
    lengths = lengths_read(subject, monkeypatch)
    ids = drawn(1, 9)[0].tolist()
    for sampler in (Greedy(), Sample(top_k=20)):
        lengths.clear()
        written = subject.generate(ids, 4, sampler, 3)
        assert lengths == [9, 1, 1, 1]
        with monkeypatch.context() as patch:
            patch.setattr(subject, "scorer", lambda: Subject.scorer(subject))
            assert written == subject.generate(ids, 4, sampler, 3)
        assert lengths[4:] == [9, 10, 11, 12]


def test_the_whole_text_is_read_where_there_is_no_cache(monkeypatch):
    model = DECODERS["llama"].build()
    subject = TransformersSubject(model)
    expected = subject.generate([3, 4, 5], 3, Greedy(), 0)
    lengths = lengths_read(subject, monkeypatch)
    with monkeypatch.context() as patch:
        forward = subject.base.forward
        patch.setattr(subject.base, "forward", lambda **inputs: forward(**inputs | {"use_cache": False}))
        subject.base.forward.__signature__ = inspect.signature(forward)
        assert subject.generate([3, 4, 5], 3, Greedy(), 0) == expected
        assert lengths == [3, 4, 5]
    lengths.clear()
    monkeypatch.setattr(model.config, "rope_parameters", {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})
    assert subject.generate([3, 4, 5], 3, Greedy(), 0) == expected
    assert lengths == [3, 4, 5]


def test_a_model_of_transformers_continues_as_it_would_by_itself():
    model = DECODERS["llama"].build()
    subject = TransformersSubject(model)
    ids = drawn(1, 7)
    expected = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)[0, 7:].tolist()
    assert list(subject.generate(ids[0].tolist(), 5, Greedy(), 0)) == expected
    seen = {}
    subject.follow(ids, lambda depth, states: seen.update({depth: states}))
    assert len(seen) == subject.layers + 1
    assert torch.equal(seen[subject.layers], subject.run(ids, hidden=True).hidden[-1])


def test_states_are_passed_on_layer_by_layer(smollm2):
    """In order, those that a run keeps, and none is kept."""
    subject = subject_of(smollm2)
    ids = torch.tensor([subject.tokenize(PROMPT).ids])
    seen = []
    subject.follow(ids, lambda depth, states: seen.append((depth, states.clone())))
    kept = subject.run(ids, hidden=True).hidden
    assert [depth for depth, _ in seen] == list(range(31))
    assert all(torch.equal(states, same) for (_, states), same in zip(seen, kept, strict=True))
    assert not any(layer._forward_pre_hooks for layer in smollm2.network.layers)


def test_characters_of_several_tokens_and_the_end_of_a_text(smollm2):
    subject = subject_of(smollm2)
    whole = subject.tokenize("The 河 🌊 bank")
    given = subject.tokenize("The")

    class Written(type(subject)):
        ends = frozenset()

        def generate(self, ids, tokens, sampler, seed):
            return (*whole.ids[1:], 2)  # <|im_end|>

    report = look(Written(smollm2), "The", generate=len(whole))
    reading = report.readings[0]
    assert reading.text == "The 河 🌊 bank"
    assert [(t.start, t.end) for t in reading.tokens[:1]] == list(given.spans)
    assert (reading.tokens[-1].special, reading.tokens[-2].text) == (True, "Ġbank")
    pieces = [reading.text[token.start : token.end] for token in reading.tokens]
    assert [piece for piece in pieces if piece] == ["The", "河", "🌊", "bank"]
    assert report.to_json()


def test_bad_input(minilm, smollm2):
    with pytest.raises(ArgumentError, match=r"`generate` needs a decoder.*minilm is an encoder"):
        look(minilm, SENTENCE, generate=3)
    with pytest.raises(ArgumentError, match=r"`lens` needs a decoder"):
        look(minilm, SENTENCE, lens=True)
    with pytest.raises(ArgumentError, match=r"`generate`"):
        look(smollm2, SENTENCE, generate=0)
    with pytest.raises(ArgumentError, match=r"`generate` must fit into the positions.*At most"):
        look(smollm2, SENTENCE, generate=10_000_000)
    with pytest.raises(ArgumentError, match=r"`sampler` must choose one token after another"):
        look(smollm2, SENTENCE, generate=3, sampler=Beam(2))
    with pytest.raises(ArgumentError, match="at least one word"):
        look(smollm2, " ", generate=3)


def made_up(tokens, layers=3, first=1, next_one=True):
    """Predictions from a formula, of which the last is the token that would come next."""
    random = np.random.default_rng(tokens)
    count, vocabulary = tokens - first + next_one, 50
    logits = random.standard_normal((count, layers + 1, vocabulary)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(-shares, -1)
    ids = random.integers(0, vocabulary, count)
    ids[-1] = -1 if next_one else ids[-1]
    own = np.take_along_axis(shares, np.maximum(ids, 0)[:, None, None].repeat(layers + 1, 1), -1)
    rank = np.where(ids[:, None] >= 0, (shares > own).sum(-1) + 1, 0)
    own = np.where(ids[:, None] >= 0, own[..., 0], np.nan)
    best = np.take_along_axis(shares, order, -1)
    return Predictions(
        first=first,
        written=tokens - 4,
        vocabulary=vocabulary,
        ids=ids.astype(np.int32),
        probability=own[:, -1].astype(np.float32),
        rank=rank[:, -1].astype(np.int32),
        entropy=-(shares[:, -1] * np.log(shares[:, -1])).sum(-1).astype(np.float32),
        candidates=order[:, -1, :8].astype(np.int32),
        shares=best[:, -1, :8].astype(np.float32),
        layer_candidates=order[..., :3].astype(np.int32),
        layer_shares=best[..., :3].astype(np.float32),
        layer_probability=own.astype(np.float32),
        layer_rank=rank.astype(np.int32),
        spelled={token: ["</script><img src=x>", " a\x1b[2Jb", "\n", " ", "\u202e"][token % 5] for token in range(50)},
    )


def with_predictions(text=SENTENCE):
    report = mock_report((text,), 3, 4, causal=True)
    one = made_up(report.readings[0].length)
    return type(report)(report.model, report.readings, report.chosen, report.chosen_by, predictions=(one,)), one


def test_the_packed_data_is_reduced_step_by_step():
    one = made_up(300)
    full = pack_predictions([one], 10**9)["writing"][0]
    assert full["lens"]["top"]["shape"] == [300, 4, 3]
    assert full["rank"] == one.rank.tolist()
    assert full["probability"][-1] == -1.0
    size = len(json.dumps(full))
    assert pack_predictions([one], size - 100)["writing"][0]["lens"]["top"]["shape"] == [300, 4, 1]
    assert pack_predictions([one, None], 100)["writing"][0]["lens"] is None
    assert pack_predictions([None], 100) == pack_predictions([], 100) == {}
    assert full["shares"] == pack_numbers(one.shares, 16, 0.0, 1.0, root=True)


def test_the_page_steps_through_the_tokens(tmp_path, open_page):
    report, one = with_predictions()
    write_page(report, tmp_path / "page.html")
    for width in (1400, 400):
        page = open_page(tmp_path / "page.html", width=width)
        panel = page.locator("section.writing")
        options = panel.get_by_role("option")
        assert options.count() == len(one)
        step = one.written - one.first  # it opens at the first token that the model wrote
        assert options.nth(step).get_attribute("aria-selected") == "true"
        panel.get_by_label("Next token").click()
        page.keyboard.press("ArrowRight")
        assert options.nth(step + 2).get_attribute("aria-selected") == "true"
        options.first.click()
        assert panel.get_by_label("Previous token").is_disabled()
        chosen = page.locator(".panel").first.locator("[role=option][aria-selected=true]")
        assert chosen.get_attribute("data-token") == str(one.first - 1)  # what was read when it was predicted
        rank = int(one.rank[0])
        assert f"rank {rank} of 50" in panel.locator("p.caption").first.inner_text()
        values = [float(text) for text in panel.locator(".candidates .bar-value").all_inner_texts()]
        np.testing.assert_allclose(values, one.shares[0], atol=2e-3)
        assert panel.locator(".lens-table tbody tr").count() == 4
        ranks = [text.split("\n")[-1] for text in panel.locator(".lens-table td.chosen").all_inner_texts()]
        assert [int(rank) for rank in reversed(ranks)] == one.layer_rank[0].tolist()
        page.keyboard.press("End")
        panel.get_by_role("option").last.focus()
        page.keyboard.press("End")
        assert "would come next" in panel.locator("p.caption").first.inner_text()
        assert page.locator("main img").count() == 0
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_command_shows_what_was_written(smollm2, tmp_path):
    run = CliRunner()
    page = tmp_path / "page.html"
    done = run.invoke(app, ["look", PROMPT, "--generate", "2", "--word", "France", "--output", str(page)])
    assert done.exit_code == 0, done.output
    assert re.search(r"“Paris”\s+0\.77\d\s+1\s+30 of 30", done.stdout)
    assert '"writing":' in page.read_text("utf-8")
    for options, message in (
        (["--temperature", "0.8"], "belongs to --generate"),
        (["--generate", "2", "--seed", "1"], "belongs to sampling"),
        (["--generate", "2", "--model", "minilm"], "`--generate` needs a decoder"),
    ):
        refused = run.invoke(app, ["look", PROMPT, *options])
        assert message in str(refused.exception)
