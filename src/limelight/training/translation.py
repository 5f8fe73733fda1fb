"""Translations of what was held out, and how near they come to those of people."""

from __future__ import annotations

from collections.abc import Sequence

from ..formats.progress import counted
from ..pretrained import Pretrained
from ..tensors.shapes import wrong

TOGETHER = 32  # sources that are translated at a time


def translate(model: Pretrained, sources: Sequence[str], *, longest: int) -> list[str]:
    """The likeliest token after the other, until the end-of-text token; sources of like length go together.

    Args:
        model: an encoder with a decoder, with its tokenizer and special token ids.
        sources: texts.
        longest: the most tokens of a translation.
    """
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    written = [""] * len(sources)
    with counted(f"Translating {len(sources):,} sources", len(sources)) as report:
        for first in range(0, len(order), TOGETHER):
            numbers = order[first : first + TOGETHER]
            found = model.generate([sources[number] for number in numbers], tokens=longest)
            for number, one in zip(numbers, found, strict=True):
                written[number] = one.text or ""
            report(first + len(numbers))
    return written


def bleu(written: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus, from 0 to 100 (Papineni et al. 2002; as sacrebleu has it, Post 2018, arXiv:1804.08771)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(written), [list(references)]).score)


def check_bleu() -> None:
    """Raise unless `bleu` can be computed.

    Raises:
        ArgumentError: sacrebleu is not installed.
    """
    try:
        import sacrebleu  # noqa: F401
    except ModuleNotFoundError as error:
        raise wrong(
            "run.translate",
            "needs sacrebleu",
            "it is not installed",
            "Try: pip install sacrebleu (it is part of the extra `train`).",
        ) from error
