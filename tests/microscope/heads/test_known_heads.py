"""Heads of real models whose role is known: syntax and pronouns in an encoder, atoms of a reaction in another."""

import itertools
import os
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import limelight
from limelight.microscope.heads.measures.coreference import Coreference
from limelight.microscope.heads.measures.syntax import Syntax
from limelight.microscope.heads.probes import labelled
from limelight.microscope.heads.run import Progress, run_probe
from limelight.microscope.subjects import subject_of

pytestmark = pytest.mark.usefixtures("one_thread")

REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
#: Of each atom of the product, the atom of the reactants that it was, both in the order of the text.
MAPPED = [0, 1, 2, 3, 15, 14, 13, 12, 11, 10, 9]


def measured(probe, measures, texts):
    """The results on the first texts of a probe, by measure and detail."""
    some = replace(probe, samples=lambda: itertools.islice(probe.samples(), texts), measures=measures, control_every=0)
    progress = Progress(some)
    run_probe(progress.measures[0].subject, progress, threading.Event(), lambda: None, lambda: None)
    return {(r.measure, r.detail): r for measure in progress.measures for r in measure.results()}


def test_an_object_is_found_in_made_sentences(minilm):
    subject = subject_of(minilm)
    (probe,) = labelled(subject)
    found = measured(probe, lambda: [Syntax(subject, ("obj", "det"))], 120)
    result = found["syntax", "obj, head to dependent"]
    assert result.total.score[3, 1] > 0.5 > result.baseline
    assert found["syntax", "det, dependent to head"].total.score[3, 1] > 0.75


@pytest.mark.skipif("LIMELIGHT_DATA" not in os.environ, reason="LIMELIGHT_DATA names no folder with UD and GAP")
def test_relations_and_pronouns_of_published_files(minilm):
    folder, subject = Path(os.environ["LIMELIGHT_DATA"]), subject_of(minilm)
    files = {"conllu": folder / "ud-english-ewt-dev.conllu", "gap": folder / "gap-development.tsv"}
    _, syntax, gap = labelled(subject, **files)
    relations = measured(syntax, lambda: [Syntax(subject, ("obj", "det"))], 400)
    assert relations["syntax", "obj, dependent to head"].total.score[2, 0] > 0.65
    assert relations["syntax", "det, dependent to head"].total.score[2, 8] > 0.75
    pronouns = measured(gap, lambda: [Coreference(subject)], 120)["coreference", ""]
    assert pronouns.total.score[3, 1] > 0.65


def test_a_head_maps_the_atoms_of_a_reaction(rxnmapper):
    tokens = rxnmapper.read(REACTION)
    text = tokens.texts[0]
    with limelight.watching(limelight.Observe(rows=tuple(range(len(text))))) as seen, torch.inference_mode():
        rxnmapper(tokens)
    weights = seen[rxnmapper.network.attention_names[10]].rows[0, 5]
    weights = weights + weights.T
    arrow = text.tokens.index(">>")
    element = {i: re.sub("[^A-Z]", "", token.upper()) for i, token in enumerate(text.tokens)}
    atoms = [i for i in element if element[i] and not text.special[i]]
    reactants, product = [i for i in atoms if i < arrow], [i for i in atoms if i > arrow]
    mapped = [
        max((j for j in reactants if element[j] == element[i]), key=lambda j: weights[i, j].item()) for i in product
    ]
    assert [reactants.index(j) for j in mapped] == MAPPED
