"""``limelight bench``: the cases mean the same to us and to PyTorch, and what is measured is written down."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from limelight import benchmark
from limelight.backends import native
from limelight.benchmark import timing
from limelight.benchmark.cases import Case, cases
from limelight.cli import app

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

run = CliRunner()
TABLE = cases()


def small(case: Case) -> Case:
    """The same with few tokens."""
    return dataclasses.replace(case, length=min(case.length, 300), documents=case.documents[5:15])


# Of cases that differ in their length alone, one.
SMALL = {dataclasses.replace(small(case), name="", group="", quick=False): small(case) for case in TABLE}.values()


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.group}: {case.name}")
def test_ours_and_pytorch_compute_the_same(case, monkeypatch):
    monkeypatch.setattr(timing, "MAX_CACHE_BYTES", 2**20)
    prepared = timing.prepare(case)
    assert (prepared.plain is not None) == bool(case.extra)
    assert prepared.flop > 0 or prepared.bytes > 0
    ours = prepared.ours()
    if prepared.peer is None:
        assert case.extra in ("soft cap", "sink", "observations")
        return
    theirs = prepared.peer()
    if case.extra == "dropout":
        return  # each drops by its own random numbers
    pairs = zip(ours, theirs, strict=False) if case.backward else [(ours, theirs)]
    if case.documents:
        parts = zip(ours.split(case.documents, 2), theirs.split(1), strict=True)
        pairs = [(one[0], padded[0, :, : one.shape[2]]) for one, padded in parts]
    close = 2e-5 if case.dtype == "float32" else 4e-2
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=close, atol=close)


def test_names_are_unique_and_the_documents_as_described():
    assert len({case.name for case in TABLE}) == len(TABLE)
    (packed,) = [case for case in TABLE if case.documents]
    assert (len(packed.documents), min(packed.documents), max(packed.documents)) == (64, 64, 1024)
    assert sum(packed.documents) == 24706
    assert benchmark.chosen("DECODE", quick=True)
    assert all(case.quick for case in benchmark.chosen(quick=True))


def test_the_table_the_numbers_and_the_figure(tmp_path, monkeypatch):
    shapes = [
        Case("a <case>", "forward", 64, 16, 2),
        Case("window", "forward", 64, 16, 2, pattern="window 8"),
        Case("beside", "extra", 64, 16, 2, extra="soft cap", backward=True),
        Case("decode", "decode", 64, 16, 2, 1, 1, per="bandwidth"),
        Case("call", "overhead", 16, 16, 1, per="call"),
    ]
    monkeypatch.setattr(benchmark, "cases", lambda: shapes)
    monkeypatch.setattr(benchmark, "QUICK_MEMORY_TOKENS", 512)
    monkeypatch.setattr(timing, "MAX_CACHE_BYTES", 2**20)
    monkeypatch.setattr(timing, "ATTEMPTS", 1)
    monkeypatch.setattr(benchmark, "chosen", lambda only, quick: shapes)
    target = tmp_path / "numbers.json"
    before = torch.get_num_threads()
    result = run.invoke(app, ["bench", "--quick", "--threads", "1", "--output", str(target)])
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == before
    numbers = json.loads(target.read_text())
    assert numbers["format"] == "limelight.bench"
    assert [row["case"] for row in numbers["cases"]] == [case.name for case in shapes]
    for row in numbers["cases"]:
        assert row["seconds"] > 0
        assert row["case"] in result.output
    full, _, beside, decode, call = numbers["cases"]
    assert full["fraction"] == pytest.approx(full["speed"] / full["limit"])
    assert full["speed"] == pytest.approx(4 * 2 * 64 * 64 * 16 / full["seconds"] * 1e-9)
    assert full["times_torch"] == pytest.approx(full["torch_seconds"] / full["seconds"])
    assert beside["torch_seconds"] is None
    assert beside["times_plain"] == pytest.approx(beside["seconds"] / beside["plain_seconds"])
    assert decode["unit"] == "GB/s"
    assert decode["speed"] == pytest.approx(2 * 64 * 16 * 4 / decode["seconds"] * 1e-9)
    assert call["fraction"] is None
    assert numbers["memory"]["tokens"] == 512
    assert numbers["memory"]["inputs_and_outputs"] == 8 * 512 * 64 * 4
    figure = ElementTree.parse(target.with_suffix(".svg")).getroot()
    assert "a <case>" in [text.text for text in figure.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("width", [50, 80, 120])
def test_a_line_fits_the_terminal_and_its_header(width):
    from limelight.cli.bench import _HEADS, _line

    cells = ("1234.56", "123.4", "87.1%", "2345.67", "2.50", "1.23")
    head, row = _line(width, "", *_HEADS["peak"]), _line(width, "beside: 2048 x 64, a long name ~", *cells)
    assert len(head) == len(row) <= width
    assert "ms" in head
    assert "1234.56" in row
    assert "2.50" in row
    assert ("87.1%" in row) == ("of peak" in head) == (width >= 80)


def test_memory_grows_with_the_length():
    """The scores of 8k tokens alone would be 256 MiB."""
    taken = timing.memory(8192, 1)
    assert 0 < taken["bytes"] < 192 * 2**20


def test_what_is_wrong_is_said():
    result = run.invoke(app, ["bench", "--only", "nothing of the kind"])
    assert "Headings: " in str(result.exception)
    result = run.invoke(app, ["bench", "--only", "decode", "--output", "/no/such/folder/a.json"])
    assert "--output" in str(result.exception)
