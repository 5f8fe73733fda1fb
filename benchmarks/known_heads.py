"""The heads that files of labelled texts are known to find, each with its baseline and the number of cases.

python benchmarks/known_heads.py FOLDER [--models minilm,smollm2]

FOLDER holds ud-english-ewt-dev.conllu (Universal Dependencies), gap-development.tsv (GAP) and winogender.tsv; those
that are missing are left out. `docs/atlas.md` explains the measures and shows what this printed.
"""

import argparse
import threading
from pathlib import Path

import numpy as np

from limelight.formats.progress import counted
from limelight.microscope.heads.measure import Probe, Result
from limelight.microscope.heads.probes import labelled
from limelight.microscope.heads.run import Progress, run_probe
from limelight.microscope.heads.sums import Numbers
from limelight.microscope.subjects import Subject, subject_of

FILES = {"conllu": "ud-english-ewt-dev.conllu", "gap": "gap-development.tsv", "winogender": "winogender.tsv"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default="minilm,smollm2")
    options = parser.parse_args()
    files = {name: options.folder / file for name, file in FILES.items() if (options.folder / file).exists()}
    for model in options.models.split(","):
        subject = subject_of(model)
        for probe in labelled(subject, **files):
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


if __name__ == "__main__":
    main()
