"""`heads`: measure what every head of a model does over a corpus."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formats.interruption import stop_requested
from ...formats.progress import counted
from ...forms.observations import Observe, watching
from ...tensors.shapes import whole_number, wrong
from ..report import ModelFacts
from ..subjects import Subject, subject_of
from .atlas import Atlas, Finding, plain
from .corpus import FEWEST, Corpus, corpus_of
from .likeness import similar_heads
from .measure import Measure, Probe, Result
from .measures import text_measures
from .measures.ablation import CONTEXT as ABLATED
from .measures.ablation import ablation_probe
from .measures.classes import CLASSES, TokenClasses
from .measures.examples import Examples, written
from .measures.induction import induction_probe
from .measures.profile import Profile
from .measures.retrieval import retrieval_probe
from .probes import labelled
from .roles import RULES, find_roles
from .run import Progress, run_probe
from .sample import Sample
from .store import restore_state, save_state
from .sums import Numbers

TOKENS, CONTEXT = 100_000, 256
TEXT = "text"  # the probe of plain text
PICTURE = 32  # tokens of the text of which all weights are kept


def heads(
    model: Any,
    corpus: str | Path | Iterable[str] | None = None,
    *,
    conllu: str | Path | None = None,
    gap: str | Path | None = None,
    winogender: str | Path | None = None,
    senses: str | Path | None = None,
    tokenizer: Any = None,
    tokens: int = TOKENS,
    context: int = CONTEXT,
    ablate: int = 0,
    state: str | Path | None = None,
    resume: bool = False,
) -> Atlas:
    """Measure what every head of a model does over a corpus.

    The model reads every text once, and all measures count what is observed of it, in memory that does not grow with
    the corpus. Beside the corpus it reads repeated random tokens (for induction), sentences made by a grammar (for
    syntax and pronouns) and, if it is a decoder, texts with an inserted sentence that it is asked for at the end (for
    retrieval). Every fourth pair of texts is read again with its tokens shuffled, as a control. Ctrl-C ends the run
    after the text that is being read; the atlas is then marked incomplete.

    Args:
        model: a name or path for `limelight.load`, or a folder or hub name of another family, which transformers opens;
            a `Pretrained`; or a model of transformers, unchanged by it.
        corpus: a text; the path of a file or folder of UTF-8 text; several texts; by default the first chapters of Jane
            Austen's *Persuasion*.
        conllu: a treebank in CoNLL-U, for the relations of its parses.
        gap: a file of GAP, for pronouns and their candidates.
        winogender: a file of Winogender sentences, for the same; read by encoders alone.
        senses: a file of examples of word senses.
        tokenizer: of a model of transformers (or in a pair with it: ``heads((model, tokenizer))``).
        tokens: reading of the corpus ends after the text that reaches this many tokens.
        context: how many tokens a text has at most; long texts are cut where a paragraph or a sentence ends.
        ablate: on how many tokens of the corpus each head is silenced, to measure what changes: the loss of a decoder,
            the last states of an encoder. 0 for none: it takes as many runs as there are heads, and 512 tokens are
            enough to tell important heads from others.
        state: a file that the sums are written to once a minute and at the end of an interrupted run.
        resume: go on from that file.

    Raises:
        ArgumentError: an empty corpus, a file that is no UTF-8, a model with an encoder and a decoder, a state of
            another run.

    Example:
        >>> import limelight
        >>> atlas = limelight.heads("smollm2", "novel.txt", tokens=20_000)  # doctest: +SKIP
        >>> atlas.write("atlas.json")  # doctest: +SKIP
    """
    subject = subject_of(model, tokenizer=tokenizer)
    if subject.kind == "encoder-decoder":
        got = f"{subject.name} has an encoder and a decoder"
        raise wrong("model", "must be an encoder or a decoder", got, "limelight.watching observes its layers.")
    tokens = whole_number("tokens", tokens, at_least=1)
    context = min(whole_number("context", context, at_least=16), subject.limit or context)
    path = None if state is None else Path(state)
    if resume and path is None:
        raise wrong("resume", "needs the file of an interrupted run", "state is not given", "Add state='atlas.npz'.")
    if path is not None and (path.is_dir() or not path.parent.is_dir()):
        got = f"{path} is a folder" if path.is_dir() else f"{path.parent} does not exist"
        raise wrong("state", "must be a file in a folder that exists", got, "For example state='atlas.npz'.")
    source = corpus_of(corpus)
    text = text_probe(subject, source, tokens, context)
    ablate = whole_number("ablate", ablate, at_least=0)
    if next(text.samples(), None) is None:
        got = f"no text of {source.name} has {FEWEST} tokens"
        raise wrong("corpus", "must hold a text of some length", got, "Give longer texts.")
    files = {"conllu": conllu, "gap": gap, "winogender": winogender, "senses": senses}
    probes = [*_own_probes(subject), *labelled(subject, **files), text]
    if ablate:
        probes.append(ablation_probe(subject, _beginning(subject, source, ablate, min(context, ABLATED)), ablate))
    progress = [Progress(probe) for probe in probes]
    of = {"model": subject.name, "layers": subject.layers, "heads": subject.heads, "corpus": source.name}
    of |= {"characters": source.characters, "context": context, "probes": [probe.name for probe in probes]}
    if resume and path is not None:
        restore_state(path, of, progress)
    complete = _run(subject, progress, of, path)
    if complete and path is not None:
        path.unlink(missing_ok=True)
    return atlas_of(subject, source.name, context, progress, picture(subject, text))


def text_probe(subject: Subject, source: Corpus, tokens: int, context: int) -> Probe:
    """Plain text with all measures of it, and with what the page shows of it."""

    def measures() -> list[Measure]:
        return [*text_measures(subject), Profile(subject), Examples(subject)]

    samples = _beginning(subject, source, tokens, context)
    return Probe(TEXT, samples, measures, min(tokens, source.tokens(subject) or tokens))


def _beginning(subject: Subject, source: Corpus, tokens: int, context: int) -> Callable[[], Iterator[Sample]]:
    """The first texts of a corpus, of ``tokens`` tokens or a few more."""

    def samples() -> Iterator[Sample]:
        read = 0

        def within(sample: Sample) -> bool:
            nonlocal read
            read += len(sample)
            return read - len(sample) < tokens

        return takewhile(within, source.samples(subject, context))

    return samples


def _own_probes(subject: Subject) -> list[Probe]:
    """Texts made of tokens and of needles."""
    return [induction_probe(subject), *([retrieval_probe(subject)] if subject.causal else [])]


def _run(subject: Subject, progress: list[Progress], of: dict[str, Any], path: Path | None) -> bool:
    """Go through all probes; return whether they came to their ends."""

    def save() -> None:
        if path is not None:
            save_state(path, of, progress)

    total = sum(one.expected for one in progress)
    with stop_requested() as stop, counted(f"Measuring {subject.name}", total) as report:
        for one in progress:
            if not one.ended and not stop.is_set():
                run_probe(subject, one, stop, lambda: report(sum(each.read for each in progress)), save)
    complete = all(one.ended for one in progress)
    if not complete:
        save()
    return complete


def picture(subject: Subject, text: Probe) -> dict[str, Any] | None:
    """All weights of the beginning of the corpus."""
    sample = next(iter(text.samples()), None)
    if sample is None:
        return None
    length = min(len(sample), PICTURE)
    rows: dict[str, Tensor] = {}
    with watching(Observe(rows=tuple(range(length)))) as seen:
        subject.run(sample.ids[:, :length])
    for name in subject.attention_names:
        found = seen[name].rows
        assert found is not None
        absent = (0, 0, 0, 0, 0, subject.heads - found.shape[1])  # heads, in a layer that has fewer of them
        rows[name] = (
            (torch.nn.functional.pad(found[0].float().cpu(), absent) * 255.0).round().clamp(0, 255).to(torch.uint8)
        )
    weights = torch.stack([rows[name] for name in subject.attention_names]).numpy()
    tokens = [written(sample, i) for i in range(length)]
    return {"tokens": tokens, "weights": base64.b64encode(weights.tobytes()).decode("ascii")}


def atlas_of(
    subject: Subject, corpus: str, context: int, progress: list[Progress], drawn: dict[str, Any] | None
) -> Atlas:
    """The atlas of what was counted so far.

    Args:
        subject: the model.
        corpus: the name of the corpus.
        context: tokens of a text.
        progress: of all probes, among them that of plain text.
        drawn: what `picture` returned.
    """
    measures = [measure for one in progress for measure in one.measures]
    results = [result for measure in measures for result in measure.results()]
    shuffled = [result for one in progress for measure in one.controls for result in measure.results()]
    controls = {(result.measure, result.detail): result for result in shuffled}
    findings = tuple(Finding(result, _score(controls.get((result.measure, result.detail)))) for result in results)
    profile = next((measure for measure in measures if isinstance(measure, Profile)), None)
    classes = next((measure for measure in measures if isinstance(measure, TokenClasses)), None)
    examples = next((measure for measure in measures if isinstance(measure, Examples)), None)
    text = next(one for one in progress if one.probe.name == TEXT)
    facts = {"name": corpus, **text.size, "context": context}
    facts["complete"] = all(one.ended for one in progress)
    facts["probes"] = [{"name": one.probe.name, **one.size, "complete": one.ended} for one in progress]
    return Atlas(
        ModelFacts(subject.name, subject.kind, subject.layers, subject.heads),
        facts,
        [*RULES, *dict.fromkeys(f"{r.claim.role}: {r.claim.source}." for r in results if r.claim is not None)],
        findings,
        find_roles(results, controls),
        None if profile is None else _profile(profile),
        None if classes is None else _classes(classes),
        [] if examples is None else examples.rows(),
        similar_heads(results, None if profile is None else profile.shares),
        drawn,
    )


def _profile(measure: Profile) -> dict[str, Any]:
    even = measure.even / max(float(measure.queries[0]), 1.0)
    return {"bins": [list(each) for each in measure.bins], "share": plain(measure.shares), "even": plain(even)}


def _classes(measure: TokenClasses) -> dict[str, Any]:
    columns = range(len(CLASSES))
    share = np.stack([measure.shares.ratio.interval(None, column).score for column in columns], -1)
    even = np.stack([measure.shares.even.interval(None, column).score for column in columns], -1)
    return {"names": list(CLASSES), "share": plain(share), "even": plain(even)}


def _score(control: Result | None) -> Numbers | None:
    return None if control is None else control.total.score
