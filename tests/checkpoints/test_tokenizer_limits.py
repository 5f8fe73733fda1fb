"""Tokenizer files that would take all memory or time are refused, and those of published kinds are not."""

import base64
import copy
import json
import subprocess
import sys

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, normalizers

from limelight import ArgumentError
from limelight.formats.errors import CheckpointError
from limelight.formats.tokenizer_files import tokenizer_in
from limelight.text import Tokenizer
from limelight.text.limits import Growth, bound

BASE = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [])).to_str())


def file(model=None, **parts):
    values = copy.deepcopy(BASE) | parts
    values["model"] |= model or {}
    return values


def replace(pattern, content, kind="String"):
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def steps(*children, name="normalizers"):
    return {"type": "Sequence", name: list(children)}


def charsmap(trie, strings):
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(trie + strings).decode()}


def template(single, ids=1):
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [],
        "special_tokens": {"a": {"id": "a", "ids": [0] * ids, "tokens": ["a"] * ids}},
    }


def added(content, normalized=True):
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": normalized, "special": True}
    return {"id": 2, "content": content, **flags}


A, SPECIAL = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "a", "type_id": 0}}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
REFUSED = {
    "doubling": (file(normalizer=steps(*[replace("a", "aa")] * 40)), "normalizer may make more than 100,000"),
    "between": (file(normalizer=steps(*[replace("", "ab", "Regex")] * 30)), "normalizer may make"),
    "one long": (file(normalizer=replace("a", "a" * 10**6)), "normalizer may make"),
    "nested": (file(normalizer=steps(steps(steps(*[replace("a", "aaa")] * 40)))), "normalizer may make"),
    "bytes of bytes": (file(normalizer=steps(*[{"type": "ByteLevel"}] * 40)), "normalizer may make"),
    "unicode and back": (
        file(normalizer=steps(*[{"type": "NFKD"}, replace(" ", "\ufdfa")] * 9)),
        "normalizer may make",
    ),
    "prefixes": (
        file(normalizer=steps(*[{"type": "Prepend", "prepend": "a" * 2_000_000}] * 99)),
        "normalizer may make",
    ),
    "map": (file(normalizer=charsmap(bytes(4), b"a" * 10**6)), "normalizer may make"),
    "map of 4 GB": (file(normalizer=charsmap(b"\xff\xff\xff\xff", bytes(5))), "precompiled_charsmap is cut"),
    "no map": (file(normalizer=charsmap(b"", b"")), "precompiled_charsmap is cut"),
    "added tokens": (
        file(normalizer=replace("a", "a" * 90_000), added_tokens=[added("a" * 1000)]),
        "of its added tokens",
    ),
    "decoder": (file(decoder=steps(*[replace("a", "aa")] * 40, name="decoders")), "its decoder may make more than 64"),
    "cutter": (
        file(pre_tokenizer=steps(*[BYTES] * 40, name="pretokenizers")),
        "its pre_tokenizer may make more than 64",
    ),
    "text again": (file(post_processor=template([A] * 1000)), "its post_processor writes"),
    "many ids": (file(post_processor=template([SPECIAL] * 10 + [A], 10_000)), "its post_processor writes"),
    "long words": (file({"max_input_chars_per_word": 10**15}), "max_input_chars_per_word is 1000000000000000"),
    "long affix": (file({"continuing_subword_prefix": "#" * 10**6}), "continuing_subword_prefix has more than 64"),
    "deep": ("[" * 100_000, "describes no tokenizer"),
    "a list": ("[]", "no JSON object"),
    "no JSON": ("{", "describes no tokenizer"),
    "steps": (file(normalizer=steps(*[{"type": "NFKD"}] * 1000)), "its normalizer has more than 100 steps"),
    "bad expression": (file(normalizer=replace("(" * 10**5 + ")" * 10**5, "", "Regex")), "tokenizers library says"),
}

MEASURED = """
import json, resource, sys, time
from pathlib import Path
from limelight import ArgumentError
from limelight.formats.tokenizer_files import tokenizer_in
before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    tokenizer = tokenizer_in(Path(sys.argv[1]))
    for text in ("a", "the \\ufdfa cat", "a" * 2000, "a b" * 100_000):
        tokenizer.read(text)
    tokenizer.write([0, 1] * 1000)
    outcome = ""
except ArgumentError as error:
    outcome = str(error)
took = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([outcome, time.process_time() - begin, took / 2**10]))
"""


def write(folder, values):
    (folder / "tokenizer.json").write_text(values if isinstance(values, str) else json.dumps(values), "utf-8")
    return folder


def measured(folder):
    """The error for a file (empty if none), and the processor seconds and MiB that it took."""
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True, timeout=100
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path, name):
    values, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=message):
        tokenizer_in(write(tmp_path, values))


ALLOWED = {
    "a bomb for long texts": file(normalizer=replace("a", "a" * 9_000)),
    "two steps": file(normalizer=steps(replace("a", "a" * 300), replace("a", "a" * 300))),
    "between": file(normalizer=steps(*[replace("", "ab", "Regex")] * 8)),
    "no such id": file(post_processor=template([{"SpecialToken": {"id": "q", "type_id": 0}}, A])),
    "bad map": file(normalizer=charsmap(bytes(4), b"ab")),
    "no length": file(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "far away": file(decoder={"type": "Strip", "content": "a", "start": 10**12, "stop": 10**12}),
    "backtracking": file(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a|a)*$"}, "behavior": "Isolated", "invert": False}
    ),
    "backtracking more": file(normalizer=replace("(a+)+$", "x", "Regex")),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_let_in_ends_soon(tmp_path, name):
    """Each either reads all texts, or says why not."""
    outcome, seconds, mebibytes = measured(write(tmp_path, ALLOWED[name]))
    assert seconds < 2
    assert mebibytes < 500
    if name in ("a bomb for long texts", "two steps", "between"):
        assert "`text` must stay of reasonable length, but the normalizer of this model makes" in outcome
    if name in ("no such id", "bad map", "no length", "far away"):
        assert "the tokenizers library says" in outcome


NORMALIZERS = [
    normalizers.NFD(),
    normalizers.NFKD(),
    normalizers.NFC(),
    normalizers.NFKC(),
    normalizers.Lowercase(),
    normalizers.StripAccents(),
    normalizers.Strip(),
    normalizers.Nmt(),
    normalizers.BertNormalizer(),
    normalizers.ByteLevel(),
    normalizers.Prepend("ab"),
    normalizers.Replace("a", "bcd"),
    normalizers.Replace("aa", "b"),
    normalizers.Replace("ab", "ccc"),
    normalizers.Replace(Regex("x*"), "yz"),
    normalizers.Replace(Regex("(?=a)"), "-"),
    normalizers.Replace(Regex("\\s+"), " "),
]


@given(
    st.text(max_size=30) | st.text(alphabet="ab\ufdfa\u0130\u1f82\u4e00 x", max_size=30),
    st.lists(st.sampled_from(NORMALIZERS), min_size=1, max_size=4),
)
def test_no_normalizer_makes_more_than_its_bound(text, chosen):
    whole = normalizers.Sequence(chosen)
    try:
        made = whole.normalize_str(text)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # some chains fail in the library itself
            raise
        return
    assert len(made) <= bound(json.loads(whole.__getstate__()), len(text))


def test_long_texts_of_modest_normalizers_are_read():
    whole = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.BertNormalizer()]
    )
    growth = Growth(whole)
    assert bound(json.loads(whole.__getstate__()), 10**6) > 100 * 10**6
    growth.check("a text  as it is \u4e00" * 60_000)
    with pytest.raises(ArgumentError, match="characters and more of its 1,000,000"):
        Growth(normalizers.Sequence([normalizers.Replace("a", "b" * 40)])).check("a" * 10**6)
    Growth(None).check("a" * 10**8)


def test_a_tokenizer_that_a_caller_made_is_bounded_as_well():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, []))
    backend.normalizer = normalizers.Sequence([normalizers.Replace("a", "aa")] * 40)
    with pytest.raises(ArgumentError, match="`text` must stay of reasonable length"):
        Tokenizer(backend).read("a")
