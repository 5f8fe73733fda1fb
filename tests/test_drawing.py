"""Pictures of patterns: text for a terminal, SVG for a page."""

from xml.etree import ElementTree

import torch

from limelight import Causal, Chunks, Full, Packed, Padded, Predicate, Window


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


def test_the_drawn_area_is_the_number_of_pairs():
    pattern = Causal() & Window(3, 0)
    root = ElementTree.fromstring(pattern.draw(10).svg(cell=10))
    seen = [r for r in root if r.get("fill-opacity")]
    assert sum(int(r.get("width")) * int(r.get("height")) for r in seen) == 100 * pattern.pairs(10)
