"""The probes with known answers: what they hold for which model, and that no role is found where there is none."""

import itertools
import threading
from dataclasses import replace

import pytest
import torch
from support.made_up_subject import MadeUp, random_scores

from limelight.checkpoints.load import load
from limelight.microscope.heads.measures.syntax import Syntax
from limelight.microscope.heads.probes import LabelError, labelled
from limelight.microscope.heads.roles import find_roles
from limelight.microscope.heads.run import Progress, run_probe
from limelight.microscope.subjects import PretrainedSubject

pytestmark = pytest.mark.usefixtures("one_thread")

CONLLU = """\
1\tDogs\tdog\tNOUN\t_\t_\t2\tnsubj\t_\t_
2\tchase\tchase\tVERB\t_\t_\t0\troot\t_\t_
3\tthe\tthe\tDET\t_\t_\t4\tdet\t_\t_
4\tcats\tcat\tNOUN\t_\t_\t2\tobj\t_\tSpaceAfter=No
5\t.\t.\tPUNCT\t_\t_\t2\tpunct\t_\t_

"""
GAP = "Text\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\n" + (
    "Ann met Mary when she left.\tshe\t18\tAnn\t0\tTRUE\tMary\t8\tFALSE\n" * 4
)
WINOGENDER = "sentid\tsentence\n" + "".join(
    f"{who}.guest.{answer}.{gender}.txt\tThe {who} told the guest that {pronoun} could leave.\n"
    for who in ("baker", "pilot", "nurse")
    for answer in (0, 1)
    for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))
)
SENSES = "word\tsense\tsentence\n" + "bank\triver\tThe bank was muddy.\nbank\tmoney\tThe bank is closed.\n" * 2


@pytest.fixture
def files(tmp_path):
    found = {}
    for name, text in {"conllu": CONLLU * 60, "gap": GAP, "winogender": WINOGENDER, "senses": SENSES}.items():
        found[name] = tmp_path / f"{name}.txt"
        found[name].write_text(text, encoding="utf-8")
    return found


def roles_of(subject, probes, texts=120):
    """The roles that hold after the first texts of all probes are run, with their controls."""
    results, controls = [], {}
    for probe in probes:
        progress = Progress(replace(probe, samples=lambda samples=probe.samples: itertools.islice(samples(), texts)))
        run_probe(subject, progress, threading.Event(), lambda: None, lambda: None)
        results += [result for measure in progress.measures for result in measure.results()]
        shuffled = [result for measure in progress.controls for result in measure.results()]
        controls |= {(result.measure, result.detail): result for result in shuffled}
    assert any(result.claim is not None for result in results)
    return find_roles(results, controls)


def test_what_an_encoder_is_given(files):
    subject = MadeUp(random_scores(), causal=False)
    probes = labelled(subject, **files)
    names = [
        "made sentences",
        "syntax (conllu.txt)",
        "GAP (gap.txt)",
        "Winogender (winogender.txt)",
        "senses (senses.txt)",
    ]
    assert [probe.name for probe in probes] == names
    (syntax,) = probes[1].measures()
    assert isinstance(syntax, Syntax)
    assert set(syntax.relations) == {"nsubj", "det", "obj"}  # without punctuation and the root
    for probe in probes:
        read = list(probe.samples())
        assert abs(probe.tokens - sum(map(len, read))) < 0.1 * probe.tokens
        assert [sample.text for sample in probe.samples()] == [sample.text for sample in read]
        assert len({sample.number for sample in read}) == len(read)
    genders = list(probes[3].samples())  # all sentences of an occupation lie in one half
    occupations = [sample.text.tokens[2] for sample in genders]
    assert {(name, sample.half) for name, sample in zip(occupations, genders, strict=True)} == {
        ("baker", 0),
        ("pilot", 1),
        ("nurse", 0),
    }


def test_what_a_decoder_is_given(files):
    probes = labelled(MadeUp(random_scores(), causal=True), **files)
    assert [probe.name.split()[0] for probe in probes] == ["made", "syntax", "GAP", "senses"]
    assert next(iter(probes[1].samples())).text.text == "\nDogs chase the cats."


def test_errors_come_before_anything_runs(tmp_path):
    path = tmp_path / "novel.txt"
    path.write_text("Call me Ishmael.\n", encoding="utf-8")
    subject = MadeUp(random_scores())
    with pytest.raises(LabelError, match=r"`conllu`: .*novel\.txt is not CoNLL-U: line 1 has 1 column instead of 10"):
        labelled(subject, conllu=path)
    path.write_text(CONLLU, encoding="utf-8")
    with pytest.raises(LabelError, match=r"novel\.txt is too small: it holds no relation 20 times"):
        labelled(subject, conllu=path)
    assert subject.runs == 0


def test_a_model_of_molecules_is_given_no_english(rxnmapper):
    assert labelled(PretrainedSubject(rxnmapper)) == []  # its tokenizer drops most letters
    subject = MadeUp(random_scores())
    subject.unknown_token = "the"
    assert labelled(subject) == []


def test_texts_beyond_the_positions_are_left_out(files):
    subject = MadeUp(random_scores(), causal=False)
    subject.limit = 6
    assert [list(probe.samples()) for probe in labelled(subject, conllu=files["conllu"])] == [[]]


def test_a_model_with_shuffled_weights_has_no_role(minilm):
    model = load("minilm")
    generator = torch.Generator().manual_seed(0)
    for parameter in model.network.parameters():
        flat = parameter.data.flatten()
        parameter.data = flat[torch.randperm(len(flat), generator=generator)].view_as(parameter)
    subject = PretrainedSubject(model)
    assert roles_of(subject, labelled(subject)) == []
