"""Texts from strings, lists, files and folders, cut into samples."""

import itertools

import pytest
from support.made_up_subject import MadeUp, random_scores

from limelight import ArgumentError
from limelight.microscope.heads import corpus
from limelight.microscope.heads.corpus import FEWEST, corpus_of

SENTENCES = " ".join(f"Sentence number {i} is about the river, the bank and {i} boats." for i in range(60))
PARAGRAPHS = "\n\n".join(f"{i}. The bank is near the river. It was cold in the morning!" for i in range(40))


@pytest.fixture
def subject():
    return MadeUp(random_scores())


@pytest.mark.parametrize("text", [SENTENCES, PARAGRAPHS, "word " * 500, "x" * 3000 + " and more"])
@pytest.mark.parametrize("context", [16, 61])
@pytest.mark.parametrize("causal", [True, False])
def test_a_text_is_cut_into_all_of_its_tokens(text, context, causal):
    subject = MadeUp(random_scores(), causal=causal)
    samples = list(corpus_of(text).samples(subject, context))
    assert all(FEWEST <= len(sample) <= context for sample in samples)
    assert [sample.number for sample in samples] == list(range(len(samples)))
    everything = "".join("".join(sample.text.text.split()) for sample in samples)
    assert "".join(text.split()).startswith(everything)
    assert len(everything) > len("".join(text.split())) - 6 * FEWEST  # no more than a last short piece is left out


def test_texts_end_where_a_sentence_or_a_paragraph_does(subject):
    for text, end in ((SENTENCES, "boats."), (PARAGRAPHS, "morning!")):
        assert all(s.text.text.rstrip().endswith(end) for s in corpus_of(text).samples(subject, 64))


def test_texts_of_a_list_are_not_joined(subject):
    texts = ["One two three four five six seven eight nine.", "Too short.", "A b c d e f g h i j k l."]
    found = [sample.text.text for sample in corpus_of(texts).samples(subject, 64)]
    assert found == [texts[0], texts[2]]
    assert [s.text.text for s in corpus_of(text for text in texts).samples(subject, 64)] == found


def test_an_iterator_gives_all_its_texts_at_every_pass(subject):
    texts = [f"Text {number} is about the river, the bank and the boats." for number in range(5)]
    made = corpus_of(iter(texts))
    assert next(made.samples(subject, 64)).text.text == texts[0]
    assert made.tokens(subject) is None
    for _ in range(2):
        assert [sample.text.text for sample in made.samples(subject, 64)] == texts


def test_files_and_folders_are_read_piece_by_piece(subject, tmp_path, monkeypatch):
    (tmp_path / "b.txt").write_text(SENTENCES, encoding="utf-8")
    (tmp_path / "a.md").write_text("\ufeff" + PARAGRAPHS.replace("cold", "céld"), encoding="utf-8")
    (tmp_path / ".hidden.txt").write_text("no " * 100)
    (tmp_path / "data.bin").write_bytes(b"\xff\xfe")
    monkeypatch.setattr(corpus, "CHUNK", 7)
    found = [s.text.text for s in corpus_of(tmp_path).samples(subject, 64)]
    monkeypatch.setattr(corpus, "CHUNK", 1 << 20)
    assert found == [s.text.text for s in corpus_of(str(tmp_path)).samples(subject, 64)]
    assert found[0].startswith("0. The bank")
    assert "céld" in found[0]
    assert "no no" not in " ".join(found)
    one = [s.text.text for s in corpus_of(tmp_path / "b.txt").samples(subject, 64)]
    assert one == found[-len(one) :]


def test_a_long_file_is_not_read_whole(subject, tmp_path):
    def endless():
        while True:
            yield SENTENCES

    endless_corpus = corpus.Corpus("endless", lambda: iter([endless()]), None)
    assert len(list(itertools.islice(endless_corpus.samples(subject, 32), 50))) == 50


def test_the_packaged_text_is_there(subject):
    found = corpus_of(None)
    assert "Austen" in found.name
    assert next(found.samples(subject, 64)).text.text.startswith("Chapter 1")
    assert 8_000 < found.tokens(subject) < 20_000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "must be"),
        ("austen.txt", "no file of that name"),
        ([], "there is none in it"),
        (["a text", 3], "item 1 is"),
        (b"bytes", "must be a text"),
        (7, "must be a text"),
        (["half \ud800"], "half of a surrogate"),
    ],
)
def test_what_is_no_corpus_is_refused(given, message):
    with pytest.raises(ArgumentError, match=message):
        corpus_of(given)


def test_files_that_are_no_text_are_refused_by_name(subject, tmp_path):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("über ".encode("latin-1") * 100)
    with pytest.raises(ArgumentError, match=r"latin\.txt holds the byte 0xfc.*iconv"):
        list(corpus_of(latin).samples(subject, 64))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ArgumentError, match="must hold text files"):
        corpus_of(empty)
    (empty / "nothing.txt").touch()
    with pytest.raises(ArgumentError, match="is empty"):
        corpus_of(empty / "nothing.txt")
    with pytest.raises(ArgumentError, match="must be a file or folder that exists"):
        corpus_of(tmp_path / "missing.txt")
