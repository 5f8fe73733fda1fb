"""What the measures of an atlas are called on its page: a label, a group for the menu, and one sentence on each."""

from __future__ import annotations

from typing import NamedTuple


class Words(NamedTuple):
    """How a measure is presented.

    Args:
        label: short, without the group.
        group: of related measures.
        definition: one sentence; empty for a measure that is not described here.
    """

    label: str
    group: str
    definition: str


_LEFT = "what the sinks leave of the attention"

#: measure -> group, label (with ``{}`` for the variant), definition
_KNOWN = {
    "offset": ("position", "offset {}", f"Mean share, of {_LEFT}, on the key at one fixed offset from the query."),
    "largest weight at offset": (
        "position of the largest weight",
        "largest at {}",
        "How many queries have their largest weight at one fixed offset.",
    ),
    "distance": ("distance", "mean distance", f"Mean distance of the keys from the query, weighted by {_LEFT}."),
    "long range": ("distance", "long range", "Mean distance of the keys, as a multiple of that of an even spread."),
    "sink": ("sinks", "sink, {}", "Share of the attention on the sinks: the first token and special tokens."),
    "entropy": ("spread", "entropy, {}", "How evenly a query spreads its attention over the keys: 0 for a single key."),
    "largest weight": ("spread", "largest weight", f"Mean of the largest weight of a query, of {_LEFT}."),
    "token class": ("kinds of token", "{}", f"Share, of {_LEFT}, on tokens of one kind."),
    "repeated random tokens": (
        "copying",
        "{} (random tokens)",
        "In repeated random tokens: the share on the token after the earlier copy (induction), or on that copy.",
    ),
    "duplicate token": ("copying", "duplicate token", "Share on earlier copies of the same token, where there is one."),
    "token after an earlier copy": (
        "copying",
        "token after an earlier copy",
        "Share on the tokens that followed earlier copies of the same token, where there is one.",
    ),
    "needle": (
        "copying",
        "needle in a haystack",
        "How often the model writes a token of an inserted sentence, and the largest weight of the query that predicts "
        "it lies on that token.",
    ),
    "semantic": (
        "meaning",
        "similar words, {}",
        "Correlation, over the pairs of a sentence, of the weight with the similarity of the static embeddings.",
    ),
    "contextuality": (
        "meaning",
        "contextuality, {}",
        "Mean cosine of a word with itself over contexts, less that of random words.",
    ),
    "senses": ("meaning", "word senses", "How often the nearest centroid of contextual vectors is that of the sense."),
    "norm-weighted": (
        "what is written",
        "written from {}",
        "Share, of what a head writes, that comes from one kind of key: the weight times the norm of the key's value "
        "behind the output projection.",
    ),
    "ablation": (
        "importance",
        "ablation, {}",
        "Change when the head's output is set to zero: of the next-token loss, or of the last states (1 - cosine).",
    ),
}


def words_of(measure: str, detail: str) -> Words:
    """How a measure is presented on the page.

    Args:
        measure: its name in the atlas.
        detail: its variant, or an empty text.
    """
    detail = detail.replace("-", "\u2212", 1) if detail[:1] == "-" else detail
    if measure in _KNOWN:
        group, label, definition = _KNOWN[measure]
        return Words(label.format(detail).rstrip(", "), group, definition)
    return Words(detail or measure, measure, "")
