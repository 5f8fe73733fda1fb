"""Readers of labelled texts: treebanks, pronouns, word senses, and what they say of other files."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.microscope.heads.labels import Arc
from limelight.microscope.heads.probes import LabelError, read_conllu, read_gap, read_senses, read_winogender

CONLLU = """\
# sent_id = 1
# text = I don't like it (much).
1	I	I	PRON	PRP	Case=Nom	4	nsubj	4:nsubj	_
2-3	don't	_	_	_	_	_	_	_	_
2	do	do	AUX	VBP	_	4	aux	4:aux	_
3	n't	not	PART	RB	_	4	advmod	4:advmod	_
4	like	like	VERB	VB	_	0	root	0:root	_
4.1	liked	like	VERB	VBN	_	_	_	0:root	_
5	it	it	PRON	PRP	_	4	obj	4:obj	_
6	(	(	PUNCT	-LRB-	_	7	punct	_	SpaceAfter=No
7	much	much	ADV	RB	_	4	advmod:emph	_	CorrectForm=_|SpaceAfter=No
8	)	)	PUNCT	-RRB-	_	7	punct	_	SpaceAfter=No
9	.	.	PUNCT	.	_	4	punct	_	SpaceAfter=No

# text = Près du lac
1	Près	près	ADV	_	_	0	root	_	_
2-3	du	_	_	_	_	_	_	_	_
2	de	de	ADP	_	_	4	case	_	_
3	le	le	DET	_	_	4	det	_	_
4	lac	lac	NOUN	_	_	1	obl	_	_
"""
WORD = "1\tGo\tgo\tVERB\t_\t_\t0\troot\t_\t_"

GAP = "ID\tText\tPronoun\tPronoun-offset\tA\tA-offset\tA-coref\tB\tB-offset\tB-coref\tURL\n"
GAP_TEXT = "Ann met Mary Lou when she left."
WINOGENDER = "sentid\tsentence\n"
SENSES = "word\tsense\tsentence\n"


def written(folder, text):
    path = folder / "labels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_conllu(tmp_path):
    first, second = read_conllu(written(tmp_path, CONLLU))
    assert first.text == "I don't like it (much)."
    assert [first.text[a:b] for a, b in first.words] == ["I", "do", "n't", "like", "it", "(", "much", ")", "."]
    assert first.arcs[:4] == (Arc(0, 3, "nsubj"), Arc(1, 3, "aux"), Arc(2, 3, "advmod"), Arc(4, 3, "obj"))
    assert first.arcs[5] == Arc(6, 3, "advmod")
    assert len(first.arcs) == 8  # the root depends on nothing
    assert second.text == "Près du lac"
    assert [second.text[a:b] for a, b in second.words] == ["Près", "du", "", "lac"]
    assert second.arcs == (Arc(1, 3, "case"), Arc(2, 3, "det"), Arc(3, 0, "obl"))


def test_conllu_of_windows_and_without_an_empty_line_at_its_end(tmp_path):
    path = written(tmp_path, b"\xef\xbb\xbf" + CONLLU.replace("\n", "\r\n").encode())
    assert [sentence.text for sentence in read_conllu(path)] == ["I don't like it (much).", "Près du lac"]


forms = st.text(st.characters(blacklist_categories=("Cs", "Zl", "Zp", "Zs", "Cc")), min_size=1, max_size=5).filter(
    lambda form: form.strip() and not form.startswith("#")
)


@given(st.lists(st.tuples(forms, st.booleans()), min_size=1, max_size=8))
def test_conllu_rebuilds_the_text(tmp_path_factory, words):
    lines = [
        f"{n}\t{form}\t_\tX\t_\t_\t{n - 1}\tdep\t_\t{'_' if space else 'SpaceAfter=No'}"
        for n, (form, space) in enumerate(words, 1)
    ]
    (sentence,) = read_conllu(written(tmp_path_factory.mktemp("conllu"), "\n".join(lines) + "\n\n"))
    assert sentence.text == "".join(form + " " * space for form, space in words).rstrip(" ")
    assert [sentence.text[a:b] for a, b in sentence.words] == [form for form, _ in words]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no sentence"),
        ("# a comment\n\n", "holds no sentence"),
        ("Call me Ishmael.\n", "line 1 has 1 column instead of 10"),
        (f"{WORD}\n2\tnow\tnow\tADV\t_\t_\t1\n", "line 2 has 7 columns instead of 10"),
        (WORD.replace("1\t", "2\t", 1), "line 1 has the number '2' where 1 is expected"),
        (WORD.replace("1\t", "\x1b[2J\t", 1), r"line 1 has the number '\x1b[2J' where 1 is expected"),
        (WORD.replace("Go", " "), "line 1 has an empty form"),
        (WORD.replace("\t0\t", "\t_\t"), "line 1 has the head '_' (column 7)"),
        (WORD.replace("\t0\t", "\t-1\t"), "line 1 has the head '-1' (column 7)"),
        (WORD.replace("\t0\t", "\t1\t"), "line 1 has the head 1, in itself"),
        (f"\n{WORD.replace(chr(9) + '0', chr(9) + '3')}\n\n", "line 2 has the head 3, in a sentence of length 1"),
        (WORD.replace("root", "_"), "line 1 has no relation"),
        (f"1-3\tGo\t_\t_\t_\t_\t_\t_\t_\t_\n{WORD}\n\n", "ends a sentence within the words 1-3"),
        (f"2-3\tGo\t_\t_\t_\t_\t_\t_\t_\t_\n{WORD}\n", "line 1 begins the words 2-3 where word 1 is expected"),
        (b"1\tGo\xff", "line 1 is not UTF-8"),
        (b"#" + b"a" * (1 << 20), "line 1 has more than 1,048,576 bytes"),
    ],
)
def test_what_is_not_conllu(tmp_path, text, said):
    path = written(tmp_path, text)
    with pytest.raises(LabelError) as error:
        list(read_conllu(path))
    message = str(error.value)
    assert message.startswith(f"{path} is not CoNLL-U: ")
    assert said in message
    assert "Pass a treebank of Universal Dependencies" in message


def test_a_sentence_without_end(tmp_path):
    words = "".join(f"{n}\ta\t_\t_\t_\t_\t{n - 1}\tdep\t_\t_\n" for n in range(1, 10_002))
    with pytest.raises(LabelError, match="line 10,001 is word 10001 of its sentence"):
        list(read_conllu(written(tmp_path, words)))


@pytest.mark.parametrize("read", [read_conllu, read_gap, read_winogender, read_senses])
def test_files_that_cannot_be_read(tmp_path, read):
    with pytest.raises(LabelError, match=r"missing\.tsv cannot be read: No such file"):
        list(read(tmp_path / "missing.tsv"))
    with pytest.raises(LabelError, match="cannot be read: Is a directory"):
        list(read(tmp_path))


def gap(pronoun="she", offset="22", a="Ann", a_offset="0", a_is="TRUE", b="Mary Lou", b_offset="8", b_is="FALSE"):
    return "\t".join(("t-1", GAP_TEXT, pronoun, offset, a, a_offset, a_is, b, b_offset, b_is, "url")) + "\n"


def test_gap(tmp_path):
    rows = gap() + gap(a_is="FALSE", b_is="TRUE") + gap(a_is="FALSE")
    first, second = read_gap(written(tmp_path, GAP + rows))  # the third pronoun stands for neither
    assert (first.pronoun, first.antecedent, first.rivals) == ((22, 25), (0, 3), ((8, 16),))
    assert (second.antecedent, second.rivals) == ((8, 16), ((0, 3),))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no row"),
        (GAP, "holds no row"),
        ("Text\tPronoun\n", "line 1 names no column 'Pronoun-offset', 'A'"),
        (GAP + "a\tb\n", "line 2 has 2 cells instead of 11"),
        (GAP + gap(offset="x"), "line 2 has Pronoun-offset 'x'"),
        (GAP + gap(offset="23"), "line 2 has no 'she' at character 23"),
        (GAP + gap(b_offset="99"), "line 2 has no 'Mary Lou' at character 99"),
        (GAP + gap() + gap(a_is="yes"), "line 3 has 'yes' in column 'A-coref' instead of TRUE or FALSE"),
        (GAP + gap(b_is="TRUE"), "line 2 says TRUE of both names"),
    ],
)
def test_what_is_not_gap(tmp_path, text, said):
    with pytest.raises(LabelError) as error:
        list(read_gap(written(tmp_path, text)))
    assert "is not GAP: " in str(error.value)
    assert said in str(error.value)


def test_winogender(tmp_path):
    sentence = "The baker told the guest that {} had burnt the bread."
    rows = (
        f"baker.guest.0.male.txt\t{sentence.format('he')}\nbaker.guest.1.neutral.txt\t{sentence.format('they')}\n"
        "pilot.someone.1.female.txt\tSomeone told the pilot that her coat was wet.\n"
    )
    first, second, third = read_winogender(written(tmp_path, WINOGENDER + rows))
    assert (first.pronoun, first.antecedent, first.rivals) == ((30, 32), (4, 9), ((19, 24),))
    assert (second.antecedent, second.rivals) == ((19, 24), ((4, 9),))
    assert third.text[slice(*third.pronoun)] == "her"
    assert third.antecedent == (0, 7)
    assert [one.group for one in (first, second, third)] == [0, 0, 1]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("baker.guest\tHe left.", "line 2 has the sentid 'baker.guest' instead of occupation"),
        ("baker.guest.2.male.txt\tHe left.", "line 2 has the sentid"),
        ("baker.guest.1.male.txt\tThe baker saw that he left.", "line 2 has the word 'guest' 0 times"),
        ("baker.guest.1.male.txt\tThe baker saw the guest.", "line 2 has a pronoun 0 times"),
    ],
)
def test_what_is_not_winogender(tmp_path, row, said):
    with pytest.raises(LabelError) as error:
        list(read_winogender(written(tmp_path, f"{WINOGENDER}{row}\n")))
    assert said in str(error.value)


def test_senses(tmp_path):
    rows = "bank\triver\tThe Bank was muddy.\nbass\tfish\tA bass swam.\nbank\tmoney\tbanks? My bank.\n"
    rows += "bass\tsound\tThe bass was loud.\n"
    examples = list(read_senses(written(tmp_path, SENSES + rows)))
    assert [(e.name, e.sense, e.word, e.last) for e in examples] == [
        ("bank", "river", (4, 8), False),
        ("bank", "money", (10, 14), True),
        ("bass", "fish", (2, 6), False),
        ("bass", "sound", (4, 8), True),
    ]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("bank\triver\tThe shore was muddy.\n", "line 2 has no word 'bank' in its sentence"),
        ("bank\t\tThe bank was muddy.\n", "line 2 has no word or no sense"),
        ("bank\triver\tThe bank was muddy.\n", "holds no second sense of 'bank'"),
    ],
)
def test_what_are_no_senses(tmp_path, rows, said):
    with pytest.raises(LabelError) as error:
        list(read_senses(written(tmp_path, SENSES + rows)))
    assert said in str(error.value)


@pytest.mark.skipif(
    "LIMELIGHT_DATA" not in os.environ, reason="LIMELIGHT_DATA names no folder with UD, GAP, Winogender"
)
def test_the_published_files():
    folder = Path(os.environ["LIMELIGHT_DATA"])
    treebank = folder / "ud-english-ewt-dev.conllu"
    said = [line[9:] for line in treebank.read_text("utf-8").splitlines() if line.startswith("# text = ")]
    assert [sentence.text for sentence in read_conllu(treebank)] == said
    assert len(list(read_gap(folder / "gap-development.tsv"))) == 1799
    assert len(list(read_winogender(folder / "winogender.tsv"))) == 720
