"""Greedy translations of held-out sources, and their BLEU against the references."""

from __future__ import annotations

from collections.abc import Sequence

from ..formats.progress import counted
from ..pretrained import Pretrained
from ..tensors.shapes import wrong

BATCH = 32  # sources that are translated at a time


def translate(model: Pretrained, sources: Sequence[str], *, max_tokens: int) -> list[str]:
    """Translate sources greedily, in batches of similar length.

    Args:
        model: an encoder-decoder with its tokenizer.
        sources: the source texts.
        max_tokens: maximum number of tokens of a translation.

    Returns:
        The translations, in the order of ``sources``.
    """
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    translations = [""] * len(sources)
    with counted(f"Translating {len(sources):,} sources", len(sources)) as report:
        for first in range(0, len(order), BATCH):
            numbers = order[first : first + BATCH]
            found = model.generate([sources[number] for number in numbers], tokens=max_tokens)
            for number, one in zip(numbers, found, strict=True):
                translations[number] = one.text or ""
            report(first + len(numbers))
    return translations


def bleu(translations: Sequence[str], references: Sequence[str]) -> float:
    """Return corpus BLEU, from 0 to 100, by sacrebleu (Papineni et al. 2002; Post 2018, arXiv:1804.08771)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu(list(translations), [list(references)]).score)


def check_bleu() -> None:
    """Check that `bleu` can be computed.

    Raises:
        ArgumentError: sacrebleu is not installed.
    """
    try:
        import sacrebleu  # noqa: F401
    except ModuleNotFoundError as error:
        raise wrong(
            "run.bleu_samples",
            "needs sacrebleu",
            "it is not installed",
            "Try: pip install sacrebleu (it is part of the extra `train`).",
        ) from error
