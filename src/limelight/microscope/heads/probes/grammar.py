"""A small grammar of English that makes sentences with known relations.

A treebank holds real texts, but its determiners stand right before most of their nouns, so that a head which always
looks at the next word scores well. Here the distances vary: 0 to 3 adjectives stand between a determiner and its noun,
phrases and clauses between a subject and its verb. The words are common, agreement holds, and what a pronoun stands for
follows from gender, number, or from being a person or a thing, with either candidate nearer equally often.

Sentences are a pure function of their number (Philox).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..labels import Arc, Reference, Sentence, Span

T = TypeVar("T")

SENTENCES = 600


@dataclass(frozen=True)
class _Kind:
    """A class of nouns: singular and plural, the pronoun of one of them, and classes of adjectives in their order."""

    nouns: tuple[tuple[str, str], ...]
    pronoun: str
    adjectives: tuple[tuple[str, ...], ...]


def _pairs(words: str) -> tuple[tuple[str, str], ...]:
    """Singular and plural of nouns written as ``dog box/boxes``."""
    found = []
    for word in words.split():
        singular, _, plural = word.partition("/")
        found.append((singular, plural or f"{singular}s"))
    return tuple(found)


def _classes(words: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(part.split()) for part in words.split("|"))


_OF_PEOPLE = _classes("kind clever famous friendly proud|tall small|young old")
WOMEN = _Kind(_pairs("woman/women girl queen mother daughter sister aunt princess/princesses"), "she", _OF_PEOPLE)
MEN = _Kind(_pairs("man/men boy king father son brother uncle prince"), "he", _OF_PEOPLE)
THINGS = _Kind(
    _pairs("box/boxes key letter book bottle picture ring chair lamp basket map hat cup stone apple umbrella"),
    "it",
    _classes("beautiful strange lovely expensive|small large heavy|old new|red green black white"),
)
PLACES = _Kind(
    _pairs("river house garden market bridge station church/churches forest lake library/libraries school island"),
    "it",
    _classes("beautiful quiet famous|small large|old new"),
)


def _verbs(words: str) -> tuple[tuple[str, ...], ...]:
    """Base form, third person and past of verbs written as ``carry/carries/carried``."""
    return tuple(tuple(verb.split("/")) for verb in words.split())


OF_THINGS = _verbs(
    "carry/carries/carried find/finds/found buy/buys/bought sell/sells/sold clean/cleans/cleaned hide/hides/hid "
    "lose/loses/lost move/moves/moved draw/draws/drew need/needs/needed want/wants/wanted keep/keeps/kept"
)
OF_PERSONS = _verbs(
    "see/sees/saw meet/meets/met greet/greets/greeted thank/thanks/thanked help/helps/helped visit/visits/visited "
    "follow/follows/followed call/calls/called know/knows/knew hear/hears/heard admire/admires/admired"
)
LIVES = _verbs("live/lives/lived work/works/worked stay/stays/stayed")
ADVERBS = ("often", "rarely", "always", "never", "quietly", "carefully", "finally")
OPENINGS = (("As usual", "In the morning", "Every summer"), ("Yesterday", "In the morning", "After a while"))
PREPOSITIONS = ("near", "behind", "beside", "outside", "next to")
LINKS = ("because", "when", "although", "after", "while")
OF_PERSON = ("tired", "hungry", "happy", "late", "busy", "lost", "bored")
OF_THING = ("broken", "missing", "heavy", "cheap", "useless")


class _Draw:
    """Choices that are a pure function of a number and of how many were made before."""

    def __init__(self, number: int) -> None:
        self.bits = np.random.Philox(key=number)

    def below(self, count: int) -> int:
        return int(self.bits.random_raw()) % count

    def of(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]


class _Maker:
    """One sentence while it is written."""

    def __init__(self, number: int) -> None:
        self.draw = _Draw(number)
        self.words: list[str] = []
        self.arcs: list[Arc] = []
        self.tense = self.draw.below(2)  # 1 for the past

    def add(self, *words: str) -> int:
        """Append words; the index of the last one."""
        self.words += words
        return len(self.words) - 1

    def noun_phrase(self, kind: _Kind, plural: bool, adjectives: int) -> int:
        """``the small old box``; the index of the noun."""
        if kind is PLACES:
            determiner = self.draw.of(("the", "the", "a", "this"))
        elif plural:
            determiner = self.draw.of(("the", "the", "these", "those", "some"))
        else:
            determiner = self.draw.of(("the", "the", "a", "this", "that", "every"))
        classes = list(range(len(kind.adjectives)))
        while len(classes) > adjectives:
            classes.pop(self.draw.below(len(classes)))
        chosen = [self.draw.of(kind.adjectives[number]) for number in classes]
        noun = self.draw.of(kind.nouns)[plural]
        if determiner == "a" and (chosen or [noun])[0][0] in "aeiou":
            determiner = "an"
        first = self.add(determiner)
        at = self.add(*chosen, noun)
        self.arcs.append(Arc(first, at, "det"))
        self.arcs += [Arc(place, at, "amod") for place in range(first + 1, at)]
        return at

    def verb(self, forms: Sequence[str], plural: bool) -> int:
        """The form that agrees; its index."""
        return self.add(forms[2] if self.tense else forms[0] if plural else forms[1])

    def place(self) -> None:
        """``near the old river``."""
        self.add(*self.draw.of(PREPOSITIONS).split())
        self.noun_phrase(PLACES, False, self.draw.below(3))

    def subject(self, kind: _Kind, plural: bool) -> int:
        """A noun phrase and what may stand between it and its verb; the index of the noun."""
        at = self.noun_phrase(kind, plural, self.draw.below(4))
        between = self.draw.below(4)
        if between in (1, 3):
            self.place()
        if between in (2, 3):
            self.add("who")
            self.verb(self.draw.of(LIVES), plural)
            self.place()
        if self.draw.below(3) == 0:
            self.add(self.draw.of(ADVERBS))
        return at

    def pronoun(self, kinds: tuple[_Kind, _Kind], plural: tuple[bool, bool]) -> tuple[int, int]:
        """``because she was tired``; the index of the pronoun, and which of the two nouns it stands for."""
        which = self.draw.below(2)
        self.add(self.draw.of(LINKS))
        at = self.add("they" if plural[which] else kinds[which].pronoun)
        copula = ("are" if plural[which] else "is", "were" if plural[which] else "was")[self.tense]
        self.add(copula, self.draw.of(OF_THING if kinds[which] is THINGS else OF_PERSON))
        return at, which

    def text(self) -> tuple[str, tuple[Span, ...]]:
        """The sentence, and the span of each word and of the full stop."""
        words = [self.words[0][0].upper() + self.words[0][1:], *self.words[1:], "."]
        text, spans = "", []
        for word in words:
            text += " " * bool(text and word not in ",.")
            spans.append((len(text), len(text) + len(word)))
            text += word
        return text, tuple(spans)


def make_sentence(number: int) -> tuple[Sentence, Reference | None]:
    """A sentence, and its pronoun where it has one.

    Example:
        >>> sentence, reference = make_sentence(7)
        >>> sentence.text
        'These proud small girls lose a white umbrella after they are late.'
        >>> sentence.text[slice(*reference.antecedent)]
        'girls'
    """
    maker = _Maker(number)
    draw = maker.draw
    if draw.below(3) == 0:
        maker.add(*draw.of(OPENINGS[maker.tense]).split(), ",")
    first = draw.of((WOMEN, MEN))
    second = draw.of((THINGS, MEN if first is WOMEN else WOMEN))
    plural = draw.below(3) == 0, draw.below(3) == 0
    subject = maker.subject(first, plural[0])
    verb = maker.verb(draw.of(OF_THINGS if second is THINGS else OF_PERSONS), plural[0])
    maker.arcs.append(Arc(subject, verb, "nsubj"))
    target = maker.noun_phrase(second, plural[1], draw.below(4))
    maker.arcs.append(Arc(target, verb, "obj"))
    if draw.below(3) == 0:
        maker.place()
    pronoun = None
    if not all(plural) and draw.below(3) > 0:
        pronoun, which = maker.pronoun((first, second), plural)
    text, spans = maker.text()
    sentence = Sentence(text, spans, tuple(maker.arcs))
    if pronoun is None:
        return sentence, None
    nouns = spans[subject], spans[target]
    return sentence, Reference(text, spans[pronoun], nouns[which], (nouns[1 - which],))


def made_sentences(count: int = SENTENCES) -> Iterator[tuple[Sentence, Reference | None]]:
    """The first ``count`` sentences of the grammar."""
    return map(make_sentence, range(count))
