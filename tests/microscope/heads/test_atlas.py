"""The whole run: roles, the atlas and its files, interruption and resuming."""

import base64
import io
import json
import math
import os
import signal
from copy import deepcopy

import numpy as np
import pytest
import torch
from rich.console import Console
from support.made_up_subject import MadeUp, designed_scores, random_scores

import limelight
from limelight import ArgumentError
from limelight.microscope import Atlas, AtlasComparison, load_atlas
from limelight.microscope.heads import measuring
from limelight.microscope.heads.measures import induction, retrieval
from limelight.microscope.heads.roles import NO_ROLE
from limelight.microscope.heads.run import measure_sample
from limelight.microscope.subjects import Run, subject_of
from limelight.microscope.terminal.atlas import summarise_atlas, summarise_comparison

TEXT = " ".join(
    f"Anne went to the {place} with {n} friends, and the {place} was cold; the friends of Anne were cold too."
    for n, place in enumerate(["river", "bank", "garden", "house", "harbour", "street"] * 4)
)


def designed():
    return MadeUp(designed_scores, layers=1, heads=6)


@pytest.fixture(scope="module", autouse=True)
def few_made_up_texts():
    """As few as show what is tested: the suite is to be fast."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(induction, "TEXTS", 10)
        patch.setattr(retrieval, "TEXTS", 2)
        patch.setattr(measuring, "labelled", lambda subject, **files: [])
        yield


def measured(subject, **options):
    return limelight.heads(subject, TEXT, **{"context": 48, **options})


@pytest.fixture(scope="module")
def atlas():
    return measured(designed())


def roles_of(atlas):
    return {(row["layer"], row["head"]): row["roles"] for row in atlas.tables["heads"]}


def test_heads_have_the_roles_that_they_were_made_for(atlas):
    roles = roles_of(atlas)
    assert roles[0, 0] == ["previous token"]
    assert roles[0, 1] == ["sink"]
    assert "duplicate token" in roles[0, 2]
    assert roles[0, 3][0] == "induction"
    assert roles[0, 4] == []
    assert roles[0, 5] == ["sink"]  # all that it leaves goes to the previous token, but it leaves too little
    assert atlas.tables["heads"][4]["role"] == NO_ROLE


def test_a_role_carries_the_numbers_that_it_rests_on(atlas):
    (row,) = [row for row in atlas.tables["roles"] if row["role"] == "induction"]
    result = atlas.finding("repeated random tokens", "induction").result
    assert row["score"] == result.scored.score[0, 3]
    assert row["score_chosen"] == result.chosen.score[0, 3]
    assert row["baseline"] < 0.2 < row["threshold"] <= row["low"] <= row["score"] <= row["high"]
    assert row["control"] < row["score"] - 0.1
    assert (row["n"], row["texts"]) == (result.scored.n, result.scored.texts)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("sharpness", [0.0, 3.0])
def test_a_model_without_structure_has_no_roles(causal, sharpness):
    subject = MadeUp(random_scores(2, 4, sharpness), causal=causal, layers=2, heads=4)
    found = measured(subject)
    assert [row["role"] for row in found.tables["roles"]] == []


def test_a_real_architecture_with_shuffled_weights_has_no_roles(minilm):
    shuffled = deepcopy(minilm)
    generator = torch.Generator().manual_seed(0)
    for parameter in shuffled.network.parameters():
        flat = parameter.data.reshape(-1)
        parameter.data = flat[torch.randperm(len(flat), generator=generator)].reshape(parameter.shape)
    assert limelight.heads(shuffled, tokens=700, context=64).tables["roles"] == []


def test_the_control_is_the_same_head_on_shuffled_tokens():
    """A head that finds its keys by position scores as before, one that finds them by the token does not."""
    found = measured(designed())
    position = found.finding("offset", "-1")
    assert position.control[0, 0] == pytest.approx(position.result.total.score[0, 0], abs=0.01)
    copies = found.finding("duplicate token")
    assert copies.control[0, 2] < 0.5 * copies.result.total.score[0, 2]


def test_tables_have_a_row_for_everything(atlas):
    tables = atlas.tables
    assert [(row["layer"], row["head"]) for row in tables["heads"]] == [(0, head) for head in range(6)]
    assert {row["measure"] for row in tables["measures"]} >= {"offset", "sink", "entropy", "duplicate token", "needle"}
    assert all(row["n"] > 0 and row["texts"] > 0 for row in tables["measures"])
    assert all(row["low"] <= row["high"] for row in tables["measures"] if row["low"] is not None)
    assert len(tables["similar"]) == 6 * 5
    assert {row["head"] for row in tables["examples"]} == set(range(6))


def test_the_dictionary_of_an_atlas_is_a_copy(atlas):
    before = atlas.to_json()
    found = atlas.to_dict()
    for name in ("notes", "roles", "examples", "similar"):
        found[name].clear()
    found["corpus"]["probes"].clear()
    found["profile"]["share"].clear()
    assert atlas.to_json() == before


def test_the_atlas_survives_json(atlas, tmp_path):
    path = tmp_path / "atlas.json"
    assert atlas.write(path) == path.stat().st_size
    again = load_atlas(path)
    assert again.to_dict() == json.loads(path.read_text(encoding="utf-8")) == atlas.to_dict()
    assert again.tables["heads"] == atlas.tables["heads"]
    assert repr(again) == repr(atlas)
    assert "6 heads with a role" in repr(atlas)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON"),
        ("[]", "format limelight.atlas 1"),
        ('{"format": "limelight.report", "version": 1}', "limelight.report 1"),
        ('{"format": "limelight.atlas", "version": 1, "model": {}}', "must hold what"),
    ],
)
def test_a_file_that_is_no_atlas_is_refused(content, message, tmp_path):
    path = tmp_path / "atlas.json"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=message):
        load_atlas(path)
    with pytest.raises(ArgumentError, match="cannot be read"):
        load_atlas(tmp_path / "missing.json")


def test_tables_go_to_csv(atlas, tmp_path):
    atlas.write(tmp_path / "atlas.csv")
    lines = (tmp_path / "atlas.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("measure,detail,layer,head,score_chosen,score,low,high")
    assert len(lines) == 1 + len(atlas.tables["measures"])
    with pytest.raises(ArgumentError, match="must end in"):
        atlas.write(tmp_path / "atlas.xls")


def test_the_picture_is_the_whole_weights_of_the_beginning(atlas):
    subject = designed()
    tokens = atlas.picture["tokens"]
    ids = list(subject.tokenize(TEXT).ids[: len(tokens)])
    raw = np.frombuffer(base64.b64decode(atlas.picture["weights"]), np.uint8)
    weights = raw.reshape(1, 6, len(tokens), len(tokens)) / 255
    np.testing.assert_allclose(weights, subject.weights(ids).numpy(), atol=0.5 / 255 + 1e-6)


def test_unknown_measures_are_named(atlas):
    with pytest.raises(ArgumentError, match="'offset'"):
        atlas.finding("nothing")
    with pytest.raises(ArgumentError, match=r"\+0"):
        atlas.finding("offset", "-99")


KEPT = ("windows", "vectors.", "places.")  # a bounded number of examples and of words, not always all of them


def test_memory_does_not_grow_with_the_corpus():
    subject = designed()
    sizes = []
    for text in (TEXT, TEXT * 3):
        probe = measuring.text_probe(subject, measuring.corpus_of(text), 10**6, 48)
        progress = measuring.Progress(probe)
        for sample in probe.samples():
            measure_sample(subject, sample, progress.measures)
        sizes.append(
            [a.nbytes for m in progress.measures for name, a in m.state().items() if not name.startswith(KEPT)]
        )
    assert sizes[0] == sizes[1]


class Interrupted(MadeUp):
    """Presses Ctrl-C in the run after so many."""

    after = 40

    def run(self, ids, **options):
        if self.runs == self.after:
            os.kill(os.getpid(), signal.SIGINT)
        return super().run(ids, **options)


def test_an_interrupted_run_keeps_what_it_read_and_goes_on(tmp_path, atlas):
    state = tmp_path / "atlas.state"
    subject = Interrupted(designed_scores, layers=1, heads=6)
    part = measured(subject, state=state)
    assert not part.corpus["complete"]
    assert "incomplete" in repr(part)
    assert state.is_file()
    assert any(not probe["complete"] for probe in part.corpus["probes"])
    whole = measured(designed(), state=state, resume=True)
    assert whole.corpus["complete"]
    assert not state.exists()
    assert whole.to_dict() == atlas.to_dict()


def test_an_interruption_of_the_first_run_leaves_an_atlas_without_scores():
    subject = Interrupted(designed_scores, layers=1, heads=6)
    subject.after = 0
    found = measured(subject)
    assert found.tables["roles"] == []
    assert {row["role"] for row in found.tables["heads"]} == {NO_ROLE}
    assert json.loads(found.to_json())["corpus"]["texts"] == 0


class Uneven(MadeUp):
    """Its second layer has two of three heads."""

    def run(self, ids, **options):
        first, second = self.scores(ids[0].tolist()).float()
        for name, layer in zip(self.attention_names, (first, second[:2]), strict=True):
            nothing = torch.zeros(1, len(layer), ids.shape[1], 4)
            bias = limelight.Bias(layer[None])
            limelight.attention(nothing, nothing, nothing, pattern=limelight.Causal(), scores=[bias], name=name)
        return Run((self.embeddings()[ids],) * 3)

    def output_weight(self, name):
        return super().output_weight(name)[: 3 - self.attention_names.index(name)]


def test_a_layer_with_fewer_heads_has_scores_for_these_alone():
    whole = measured(MadeUp(random_scores()))
    found = measured(Uneven(random_scores()))
    for one, other in zip(found.findings, whole.findings, strict=True):
        if one.result.total.score.shape == (2, 3) and one.result.measure != "semantic":
            assert math.isnan(one.result.total.score[1, 2])
            expected = other.result.total.score.ravel()[:5]
            np.testing.assert_allclose(one.result.total.score.ravel()[:5], expected, rtol=1e-5, atol=1e-7)
    assert not [row for row in found.tables["examples"] if (row["layer"], row["head"]) == (1, 2)]


def test_few_texts_have_no_roles():
    found = measured(designed(), tokens=200)
    assert found.corpus["texts"] < 10
    assert not [row for row in found.tables["roles"] if row["role"] == "previous token"]


def test_a_state_of_another_run_is_refused_by_name(tmp_path):
    state = tmp_path / "atlas.state"
    measured(Interrupted(designed_scores, layers=1, heads=6), state=state)
    other = designed()
    other.name = "another"
    with pytest.raises(ArgumentError, match=r"same model.*'made up'.*'another'"):
        measured(other, state=state, resume=True)
    with pytest.raises(ArgumentError, match="same corpus"):
        limelight.heads(designed(), [TEXT], context=48, state=state, resume=True)
    with pytest.raises(ArgumentError, match="same context"):
        limelight.heads(designed(), TEXT, context=32, state=state, resume=True)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(ArgumentError, match="is damaged"):
        measured(designed(), state=state, resume=True)
    with pytest.raises(ArgumentError, match="does not exist"):
        measured(designed(), state=tmp_path / "none", resume=True)
    with pytest.raises(ArgumentError, match="needs the file"):
        measured(designed(), resume=True)


def test_tokens_limit_the_corpus():
    found = measured(designed(), tokens=100)
    assert 100 <= found.corpus["tokens"] < 100 + 48
    for options in ({"tokens": 0}, {"context": 3}):
        with pytest.raises(ArgumentError, match=next(iter(options))):
            measured(designed(), **options)


def test_two_models_are_compared_head_by_head(atlas):
    def swapped(ids):
        return designed_scores(ids)[:, [2, 1, 0, 3, 4, 5]]

    comparison = AtlasComparison(atlas, measured(MadeUp(swapped, layers=1, heads=6)))
    rows = {row["head"]: row for row in comparison.tables["heads"]}
    assert rows[0]["role"] == "previous token"
    assert "duplicate token" in rows[0]["other_role"] or rows[0]["other_role"] != "previous token"
    assert rows[0]["changed"] is not None
    assert rows[1]["same"]
    assert rows[1]["changed"] is None
    for row in comparison.tables["measures"]:
        if row["change"] is not None:
            assert row["change"] == pytest.approx(row["second"] - row["first"], abs=1e-3)
    with pytest.raises(ArgumentError, match="as many layers and heads"):
        AtlasComparison(atlas, measured(MadeUp(random_scores())))


def test_the_terminal_is_not_steered_by_the_names_in_an_atlas(atlas):
    def evil(text):
        return f"{text}\x1b[31m\x9b2J\u202e"

    loaded = json.loads(atlas.to_json())
    loaded["model"]["name"] = evil("model")
    loaded["corpus"] |= {"name": evil("corpus")}
    loaded["roles"] = [row | {"role": evil(row["role"])} for row in loaded["roles"]]
    for measure in loaded["measures"]:
        measure["measure"] = evil(measure["measure"])
    first = Atlas.from_dict(loaded)
    loaded["corpus"] = loaded["corpus"] | {"name": evil("another corpus")}
    for measure in loaded["measures"]:
        total = measure["total"]
        for name in ("score", "low", "high"):
            total[name] = [[None if value is None else value + 100 for value in row] for row in total[name]]
    console = Console(file=io.StringIO(), width=100)
    summarise_atlas(first, console)
    summarise_comparison(AtlasComparison(first, Atlas.from_dict(loaded)), console)
    printed = console.file.getvalue()
    assert "6 of 6 heads changed clearly" in printed
    assert "another corpus" in printed
    assert not {*"\x1b\x9b\u202e"} & {*printed}


@pytest.mark.parametrize("state", ["", "missing/a.state"])
def test_a_state_that_cannot_be_written_is_refused_before_the_run(tmp_path, state):
    with pytest.raises(ArgumentError, match="`state` must be a file in a folder that exists"):
        measured(designed(), state=tmp_path / state)


def test_texts_that_are_too_short_are_refused():
    with pytest.raises(ArgumentError, match="no text of 2 texts has 8 tokens"):
        limelight.heads(designed(), ["One word.", "Two words."])


def test_models_of_both_kinds_are_refused():
    subject = designed()
    subject.kind = "encoder-decoder"
    with pytest.raises(ArgumentError, match="encoder and a decoder"):
        measured(subject)


def test_a_subject_is_what_it_is():
    subject = designed()
    assert subject_of(subject) is subject
    assert math.isclose(float(subject.weights([3, 4, 5])[0, 4, 2, 1]), 1 / 3)
