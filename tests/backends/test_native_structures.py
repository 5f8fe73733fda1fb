"""The structures of the C interface: as Python declares them, and as the library was compiled."""

import re
import struct
from pathlib import Path

import pytest

from limelight.backends import BackendError, native
from limelight.backends.native import library, structures
from limelight.backends.native.structures import Structure, declared, mismatch

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

HEADER = Path(__file__).parents[2] / "native" / "include" / "limelight.h"
STRUCTURES = list(structures._BY_NAME.values())
FIELDS = [(structure, field) for structure in STRUCTURES for field in structure.fields]


def test_python_and_the_library_agree():
    assert library.layout() == declared()
    assert mismatch(library.layout()) == ""


GROUPS = {
    "shapes": ("batch", "query_heads", "key_heads", "queries", "keys", "width", "value_width"),
    "sizes": ("batch", "heads", "length", "width", "rotated"),
    "form": ("batch", "heads", "length", "width"),
}


@pytest.mark.parametrize(("structure", "field"), FIELDS, ids=lambda x: getattr(x, "name", None))
@pytest.mark.parametrize("by_position", [False, True])
def test_a_field_is_packed_where_the_library_reads_it(structure, field, by_position):
    (reported,) = [f for f in library.layout() if (f.structure, f.name) == (structure.name, field.name)]
    count = reported.size // 8
    mark = structures.VERSION + 1  # no default
    name, value = field.name, (mark,) * count if count > 1 else mark
    for group, members in GROUPS.items():
        if group in structure._initial and name in members:
            name, value = group, tuple(mark if member == name else 0 for member in members)
    packed = structure.packer(name)(value) if by_position else structure.pack(**{name: value})
    numbers = struct.unpack(f"{structure.size // 8}q", packed)
    packed_mark = struct.unpack("q", struct.pack("d", mark))[0] if field.type == "d" else mark
    changed = [n for n, number in enumerate(numbers) if number not in (0, structures.VERSION)]
    assert changed == list(range(reported.offset // 8, (reported.offset + reported.size) // 8))
    assert field.type == "T" or all(numbers[n] == packed_mark for n in changed)


def shifted(structure):
    """The reported layout where an unexpected field comes first in one structure."""
    return [f._replace(offset=f.offset + 8) if f.structure == structure and f.name else f for f in library.layout()]


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda s: s.name)
def test_a_shifted_field_is_noticed(structure):
    first = structure.fields[0].name
    assert mismatch(shifted(structure.name)).startswith(f"`{structure.name}.{first}` has")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "`ll_step.bytes` has 8 bytes of type q at 8 in Python, and missing in the library"),
        (
            lambda rows: [*rows, rows[-1]._replace(name="more")],
            "`ll_step.more` .* in the library, and missing in Python",
        ),
        (
            lambda rows: [r._replace(type="q") if r.name == "epsilon" else r for r in rows],
            "`ll_norm.epsilon` .* type q",
        ),
        (lambda rows: [r._replace(size=80) if r[:2] == ("ll_segment", "") else r for r in rows], "80 bytes"),
    ],
)
def test_every_difference_is_named(change, words):
    assert re.search(words, mismatch(change(library.layout())))


def test_a_library_with_a_shifted_field_is_refused(monkeypatch):
    """Two fields of ll_norm change places, as after an edit of the header that Python does not have."""
    swapped = structures.NORM.__dict__ | {"fields": list(structures.NORM.fields)}
    norm = object.__new__(Structure)
    norm.__dict__ = swapped
    index = [field.name for field in norm.fields].index("result")
    one, two = norm.fields[index : index + 2]
    norm.fields[index : index + 2] = [two._replace(offset=one.offset), one._replace(offset=two.offset)]
    monkeypatch.setitem(structures._BY_NAME, "ll_norm", norm)
    loaded, reason = library.load()
    assert loaded is None
    assert re.search(
        r"is of another version: `ll_norm\.result` has 8 bytes of type P at 72 in the library, and", reason
    )
    assert reason.endswith("reinstall Limelight")


def test_a_library_without_a_function_is_refused(monkeypatch):
    monkeypatch.setitem(library._ARGUMENTS, "ll_missing", [])
    assert library.load()[0] is None
    assert "is of another version, without ll_missing: reinstall Limelight" in library.load()[1]


def test_a_call_without_the_library_says_why(monkeypatch):
    monkeypatch.setattr(library, "_library", None)
    monkeypatch.setattr(library, "_missing", "it was not built")
    with pytest.raises(BackendError, match="backend 'native': it was not built"):
        library._function("ll_norm_forward")(b"")


@pytest.mark.skipif(not HEADER.is_file(), reason="the header is no part of an installed package")
def test_the_header_has_no_more():
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    assert set(re.findall(r"LL_API [\w\s*]*?(ll_\w+)\(", text)) == set(library._ARGUMENTS)
    assert set(re.findall(r"typedef struct (ll_\w+)", text)) == {"ll_field", "ll_openmp", *structures._BY_NAME}
    for name in ("VERSION", "MAX_RULES", "MAX_MATRICES"):
        assert re.search(rf"#define LL_{name} {getattr(structures, name)}\b", text)
