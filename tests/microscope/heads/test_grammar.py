"""The sentences that a grammar makes: agreement, labels, and distances that do not give the answer away."""

from collections import Counter

import pytest

from limelight.microscope.heads.probes import grammar
from limelight.microscope.heads.probes.grammar import made_sentences, make_sentence

COUNT = 400
KINDS = (grammar.WOMEN, grammar.MEN, grammar.THINGS, grammar.PLACES)
PLURAL = {plural for kind in KINDS for _, plural in kind.nouns}
SINGULAR = {singular for kind in KINDS for singular, _ in kind.nouns}


@pytest.fixture(scope="module")
def sentences():
    return list(made_sentences(COUNT))


def words_of(sentence):
    return [sentence.text[start:end] for start, end in sentence.words]


def test_a_sentence_is_a_function_of_its_number(sentences):
    assert [make_sentence(number) for number in range(0, COUNT, 7)] == sentences[::7]
    assert len({sentence.text for sentence, _ in sentences}) > 0.98 * COUNT


def test_words_cover_the_text(sentences):
    for sentence, _ in sentences:
        assert "".join(words_of(sentence)) == sentence.text.replace(" ", "")
        assert sentence.text[0].isupper()
        assert sentence.text.endswith(".")
        assert "  " not in sentence.text


def test_determiners_and_adjectives_agree(sentences):
    for sentence, _ in sentences:
        words = [word.lower() for word in words_of(sentence)]
        for arc in sentence.arcs:
            if arc.relation not in ("det", "amod"):
                continue
            assert words[arc.head] in SINGULAR | PLURAL
            if arc.relation == "amod":
                assert words[arc.dependent] not in SINGULAR | PLURAL
                continue
            determiner, behind = words[arc.dependent], words[arc.dependent + 1]
            assert (words[arc.head] in PLURAL) >= (determiner in ("these", "those", "some"))
            assert (words[arc.head] in SINGULAR) >= (determiner in ("a", "an", "this", "that", "every"))
            if determiner in ("a", "an"):
                assert (behind[0] in "aeiou") == (determiner == "an")


def test_verbs_agree_with_their_subjects(sentences):
    base, third, past = map(set, zip(*grammar.OF_THINGS, *grammar.OF_PERSONS, strict=True))
    seen = Counter()
    for sentence, _ in sentences:
        words = words_of(sentence)
        ((subject, verb),) = [(words[a.dependent], words[a.head]) for a in sentence.arcs if a.relation == "nsubj"]
        ((same, target),) = [(words[a.head], words[a.dependent]) for a in sentence.arcs if a.relation == "obj"]
        assert same == verb
        assert target in SINGULAR | PLURAL
        assert verb in (past | (base if subject in PLURAL else third))
        seen[verb in past] += 1
    assert min(seen[False], seen[True]) > COUNT / 3


def test_pronouns_fit_one_candidate_alone(sentences):
    references = [reference for _, reference in sentences if reference is not None]
    assert len(references) > COUNT / 2

    def pronoun_of(noun):
        kind = next(kind for kind in KINDS if noun in dict(kind.nouns) or noun in dict(kind.nouns).values())
        return "they" if noun in PLURAL else kind.pronoun

    for reference in references:
        pronoun, noun, rival = (
            reference.text[slice(*span)] for span in (reference.pronoun, reference.antecedent, *reference.rivals)
        )
        assert pronoun == pronoun_of(noun) != pronoun_of(rival)
        assert max(reference.antecedent[1], reference.rivals[0][1]) < reference.pronoun[0]
    nearer = sum(reference.antecedent > reference.rivals[0] for reference in references)
    assert 0.4 < nearer / len(references) < 0.6


def test_no_fixed_offset_finds_most(sentences):
    offsets = {}
    for sentence, _ in sentences:
        for arc in sentence.arcs:
            offsets.setdefault(arc.relation, Counter())[arc.head - arc.dependent] += 1
    best = {relation: max(count.values()) / count.total() for relation, count in offsets.items()}
    assert set(best) == {"nsubj", "obj", "det", "amod"}
    assert max(best["nsubj"], best["obj"], best["det"]) < 0.35
    assert best["amod"] < 0.6
