"""The heads that are known of packaged models, each with its baseline and the number of cases.

python benchmarks/known_heads.py FOLDER [--models minilm,smollm2] [--probes gap]
python benchmarks/known_heads.py FOLDER --models marian-en-pt,whisper-tiny-en --sound speech.wav

FOLDER holds ud-english-ewt-dev.conllu (Universal Dependencies), gap-development.tsv (GAP) and winogender.tsv; those
that are missing are left out. Of a translator, each head of cross-attention is scored on the words that a translation
spells as its source does; of a model that hears, on whether later words look later. `docs/atlas.md` explains the
measures and shows what this printed.
"""

import argparse
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np

from limelight.formats.progress import counted
from limelight.microscope import look
from limelight.microscope.heads.measure import Probe, Result
from limelight.microscope.heads.probes import labelled
from limelight.microscope.heads.run import Progress, run_probe
from limelight.microscope.heads.sums import Numbers, Ratio
from limelight.microscope.subjects import Subject, subject_of

FILES = {"conllu": "ud-english-ewt-dev.conllu", "gap": "gap-development.tsv", "winogender": "winogender.tsv"}
SENTENCES = 60  # that are translated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="minilm,smollm2")
    parser.add_argument("--probes", default="", help="only those whose name holds this: made, syntax, GAP, Winogender")
    parser.add_argument("--sound", type=Path, help="a WAV file, for a model that hears")
    options = parser.parse_args()
    given = {name: options.folder / file for name, file in FILES.items() if (options.folder / file).exists()}
    for model in options.models.split(","):
        subject = subject_of(model)
        if subject.hears:
            listener(subject, options.sound)
        elif subject.kind == "encoder-decoder":
            translator(subject)
        for probe in labelled(subject, **given):
            if options.probes.lower() in probe.name.lower():
                show(subject, probe)


def show(subject: Subject, probe: Probe) -> None:
    """Measure the texts of a probe and print a row for each result."""
    progress = Progress(probe)
    with counted(f"{subject.name}, {probe.name}", progress.expected) as report:
        run_probe(subject, progress, threading.Event(), lambda: report(progress.read), lambda: None)
    print(f"\n{subject.name}, {probe.name}, {progress.samples:,} texts")
    shuffled = [result for measure in progress.controls for result in measure.results()]
    controls = {(result.measure, result.detail): result.total.score for result in shuffled}
    for measure in progress.measures:
        for result in measure.results():
            print(row(result, controls.get((result.measure, result.detail))))


def row(result: Result, control: Numbers | None) -> str:
    """The head (or layer) that is best on the half that chooses, and its score on the other half."""
    chosen = np.where(np.isfinite(result.chosen.score), result.chosen.score, -np.inf)
    layer, head = np.unravel_index(int(chosen.argmax()), chosen.shape)
    shuffled = "" if control is None else f"  shuffled {control[layer, head]:.2f}"
    scored = result.scored
    return (
        f"{result.detail or result.measure:28} {layer}.{head:<3} {scored.score[layer, head]:.3f} "
        f"[{scored.low[layer, head]:.2f}, {scored.high[layer, head]:.2f}]  baseline {result.baseline:.3f} "
        f"({result.baseline_name}){shuffled}  n {result.chosen.n:.0f} + {scored.n:.0f}"
    )


def translator(subject: Subject) -> None:
    """Print how often each head's strongest source word is the one that is spelled as the word it writes."""
    hits, diagonal, cases, chosen = Ratio(subject.layers, subject.heads, common_whole=True), 0, 0, set()
    with counted(f"{subject.name}, {SENTENCES} sentences", SENTENCES) as report:
        for number, sentence in enumerate(islice(sentences(), SENTENCES)):
            cross = look(subject, sentence).cross
            assert cross is not None
            chosen |= set(cross.heads)
            sources = [unit.text for unit in cross.units if not unit.special]
            usual = [place for place, unit in enumerate(cross.units) if not unit.special]
            targets = [word.text for word in cross.target.words]
            alike = [word for word in targets if word.isalnum() and targets.count(word) == sources.count(word) == 1]
            for word in alike:
                at, truth = targets.index(word), sources.index(word)
                diagonal += round(at * (len(sources) - 1) / max(len(targets) - 1, 1)) == truth
                for layer in range(subject.layers):
                    right = cross.by_word[layer, :, at][:, usual].argmax(-1) == truth
                    hits.add(number, layer, right, 1.0, 1.0)
            cases += len(alike)
            report(number + 1)
    found = hits.interval()
    print(f"\n{subject.name}, {cases} words spelled alike in {found.texts} sentences", end="; ")
    print(f"the word on the diagonal is right for {diagonal / cases:.2f}")
    for layer, head in np.argwhere(found.score >= 0).tolist():
        mark = "  <-- aligns, as `look` finds it without labels" if (layer, head) in chosen else ""
        interval = f"[{found.low[layer, head]:.2f}, {found.high[layer, head]:.2f}]"
        print(f"{layer}.{head} {found.score[layer, head]:.2f} {interval}{mark}")


def sentences() -> Iterator[str]:
    """Sentences of the packaged novel, of 8 to 30 words."""
    novel = (files("limelight.microscope.heads") / "data/persuasion.txt").read_text(encoding="utf-8")
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(novel.split())):
        if 8 <= len(sentence.split()) <= 30:
            yield sentence


def listener(subject: Subject, sound: Path) -> None:
    """Print of how many neighbouring tokens each head looks later in the sound from the later one."""
    cross = look(subject, sound).cross
    assert cross is not None
    rows = [place - 1 for word in cross.target.words for place in word.tokens]
    times = cross.weights[:, :, rows].argmax(-1)  # (N, H, R)
    later, telling = (np.diff(times) > 0).mean(-1), replace(cross, named=()).heads
    print(f"\n{subject.name}, {len(rows)} tokens: {cross.target.text}")
    print("the checkpoint names", ", ".join(f"{layer}.{head}" for layer, head in cross.named))
    print("the weights tell most of the word", ", ".join(f"{layer}.{head}" for layer, head in telling))
    for layer, head in sorted(np.ndindex(later.shape), key=lambda place: -later[place]):
        mark = "  named" if (layer, head) in cross.named else ""
        print(f"{layer}.{head:<2} later {later[layer, head]:.2f}{mark}")


if __name__ == "__main__":
    main()
