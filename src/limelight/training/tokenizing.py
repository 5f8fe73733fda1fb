"""A tokenizer trained on the training data: characters or byte-pair encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from ..text import Tokenizer

PAD, START, END, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = (PAD, START, END, UNKNOWN)


def characters(texts: Iterable[str]) -> tokenizers.Tokenizer:
    """Build a tokenizer with one token for each character that occurs, the most frequent first."""
    counts = Counter(character for text in texts for character in text)
    ordered = sorted(counts, key=lambda character: (-counts[character], character))
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *ordered))}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return backend


def byte_pairs(texts: Iterable[str], size: int) -> tokenizers.Tokenizer:
    """Train byte-level byte-pair encoding (Sennrich et al. 2015, arXiv:1508.07909; GPT-2), without unknown tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def trained(kind: str, size: int, texts: Iterable[str], *, task: str) -> Tokenizer:
    """A tokenizer that adds special tokens: ``<s>`` before a text to continue, ``</s>`` after one to translate.

    Args:
        kind: ``"characters"`` or ``"byte-pair"``.
        size: maximum vocabulary size of byte-pair encoding.
        texts: the training texts.
        task: ``"language"`` or ``"translation"``.
    """
    backend = characters(texts) if kind == "characters" else byte_pairs(texts, size)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    token, single = (START, f"{START} $A") if task == "language" else (END, f"$A {END}")
    backend.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(token, backend.token_to_id(token))]
    )
    return Tokenizer(backend)


def special_token_ids(*, task: str) -> dict[str, int]:
    """Ids of the special tokens, by their published names."""
    pad, start, end = (SPECIAL_TOKENS.index(token) for token in (PAD, START, END))  # they open the vocabulary
    named = {"pad_token_id": pad, "bos_token_id": start, "eos_token_id": end}
    return named | ({"decoder_start_token_id": start} if task == "translation" else {})
