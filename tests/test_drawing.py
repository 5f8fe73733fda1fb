"""A pattern prints itself, draws itself and counts its pairs."""

from xml.etree import ElementTree

import pytest
import torch

from limelight import Blocks, Causal, Chunks, Explicit, Full, Keys, Packed, Padded, Predicate, Prefix, Window


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (Causal() & (Window(255, 0) | Keys(first=4)), "Causal() & (Window(back=255, ahead=0) | Keys(first=4))"),
        ((Causal() & Window(1, 0)) | Full(), "Causal() & Window(back=1, ahead=0) | Full()"),
        (~(Causal() | Chunks(3)), "~(Causal() | Chunks(size=3))"),
        (Causal() & (Causal() & Prefix(2)), "Causal() & (Causal() & Prefix(length=2))"),
        (Explicit(torch.ones(2, 3).bool()), "Explicit(mask=<bool (2, 3)>, fixed=False)"),
        (Blocks(torch.ones(2, 3).bool(), 64), "Blocks(table=<bool (2, 3)>, size=64)"),
    ],
)
def test_print(pattern, text):
    assert repr(pattern) == text


def test_patterns_are_values():
    assert Causal() & Window(2, 0) == Causal() & Window(2, 0)
    assert len({Causal() | Keys(1), Causal() | Keys(1), Causal() | Keys(2)}) == 2
    assert Window(2, 0) != Window(0, 2)


def test_text():
    assert str(Chunks(2).draw(4)) == "■ ■ · ·\n■ ■ · ·\n· · ■ ■\n· · ■ ■"
    assert str(Causal().draw(2, 4)) == "■ ■ ■ ·\n■ ■ ■ ■"
    assert str(Causal().draw(3, layout=Packed((1, 2)))) == "■ · ·\n· ■ ·\n· ■ ■"
    assert str(Full().draw(3, layout=Padded(torch.tensor([2, 3])))) == "■ ■ ·\n■ ■ ·\n· · ·"
    second = Predicate(lambda at: at.head == at.key_position).draw(1, 3, head=1, heads=2)
    assert str(second) == "· ■ ·"


def test_a_long_pattern_is_drawn_small():
    lines = str((Causal() & Window(20_000, 0)).draw(131_072)).splitlines()
    assert len(lines) <= 50
    assert "█" in lines[20]
    assert "one cell is" in lines[-1]


def test_svg_is_one_well_formed_picture():
    svg = (Causal() & Window(3, 0)).draw(10).svg()
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    assert "Window(back=3, ahead=0)" in svg
    assert len(svg) < 3000


def test_pairs():
    assert Full().pairs(7, 9, batch=2, heads=3) == 7 * 9 * 6
    assert Causal().pairs(100_000) == 100_000 * 100_001 // 2
    assert (Causal() & Window(255, 0)).pairs(4096) == sum(min(i + 1, 256) for i in range(4096))


def test_the_drawn_area_is_the_number_of_pairs():
    pattern = Causal() & Window(3, 0)
    root = ElementTree.fromstring(pattern.draw(10).svg(cell=10))
    seen = [r for r in root if r.get("fill-opacity")]
    assert sum(int(r.get("width")) * int(r.get("height")) for r in seen) == 100 * pattern.pairs(10)
