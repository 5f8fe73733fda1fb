"""Translations of what was held out, and how near they come to those of people."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..models import EncoderDecoder, Pretrained
from ..nn import Cache
from ..shapes import wrong

TOGETHER = 32  # sources that are translated at a time


@torch.no_grad()
def translate(model: Pretrained, sources: Sequence[str], *, longest: int) -> list[str]:
    """The likeliest token after the other, until the mark of the end.

    Args:
        model: an encoder with a decoder, with its tokenizer and marks.
        sources: texts.
        longest: the most tokens of a translation.
    """
    network = model.network
    if not isinstance(network, EncoderDecoder):
        raise wrong("model", "must have an encoder and a decoder to translate", f"it is {model}", "Take another.")
    order = sorted(range(len(sources)), key=lambda number: len(sources[number]))
    written = [""] * len(sources)
    start, end = model.marks["decoder_start_token_id"], model.marks["eos_token_id"]
    for first in range(0, len(order), TOGETHER):
        numbers = order[first : first + TOGETHER]
        read = model.read([sources[number] for number in numbers])
        encoded = network.encode(read.ids, layout=read.layout)
        cache = Cache()
        tokens = [torch.full((len(numbers), 1), start, device=read.ids.device)]
        ended = torch.zeros(len(numbers), dtype=torch.bool, device=read.ids.device)
        while len(tokens) <= longest and not ended.all():
            logits = network(tokens[-1], source=encoded, cache=cache).logits
            assert logits is not None  # `Objective` saw to a head
            tokens.append(logits[:, -1:].argmax(-1))
            ended |= tokens[-1][:, 0] == end
        for number, row in zip(numbers, torch.cat(tokens, 1).tolist(), strict=True):
            until = row.index(end) if end in row else len(row)
            written[number] = model.tokenizer.write(row[1:until])
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
        raise wrong("run.translate", "needs sacrebleu", "it is not installed", "Try: pip install sacrebleu") from error
