"""The page of a text in a real browser, where there is one: every view is opened, used and saved."""

import csv
import dataclasses
import re
import xml.etree.ElementTree as xml

import pytest
from support.made_up import OTHER, SENTENCE, mock_report, paragraphs

from limelight.microscope import write_page

HOSTILE = "</script><img src=x onerror=document.title='gone'> <b>river</b> =1+1 {{view}} \u202e\x1b[31m ]]>"
HEBREW = "הבנק נמצא ליד הנהר, והסירה river עומדת."
VIEWS = ("text", "relations", "heads", "head", "numbers", "layers")


def written(tmp_path, *texts, layers=3, heads=4, **settings):
    """A page of these texts, and its report."""
    report = mock_report(texts, layers, heads, **settings)
    write_page(report, tmp_path / "page.html")
    return tmp_path / "page.html", report


@pytest.fixture
def compared(tmp_path):
    return written(tmp_path, SENTENCE, OTHER)[0]


def saved(page, button):
    page.wait_for_timeout(150)  # Chromium drops downloads that follow one another faster
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return download.value


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("text", [SENTENCE, HOSTILE, HEBREW])
def test_the_page_draws_itself(text, theme, tmp_path, open_page):
    where, report = written(tmp_path, text, SENTENCE)
    page = open_page(where, theme=theme)
    assert page.get_by_role("option").count() == sum(reading.length for reading in report.readings)
    assert page.get_by_role("gridcell").count() == 12
    assert page.locator("main img").count() == 0
    assert not page.title().startswith("gone")
    assert page.locator(".band").count() >= 1
    assert page.locator("html").get_attribute("data-theme") == theme


def test_the_sentence_on_top_is_made_from_the_data(tmp_path, open_page):
    where, report = written(tmp_path, SENTENCE)
    page = open_page(where)
    said = re.sub(r"\s+", " ", page.locator(".said").inner_text())
    form = r"(\w+) takes ([\d.]+) % of its attention from (\w+) in head (\d)\.(\d), where an even share would be 11 %\."
    query, weight, key, layer, head = re.fullmatch(form, said).groups()
    reading = report.readings[0]
    i, j = (reading.words[reading.find(name)[0]].tokens[0] for name in (query, key))
    assert float(weight) == pytest.approx(100 * reading.shares[int(layer), int(head), i, j], abs=0.5)
    assert "Click any word" in page.locator(".more").inner_text()


def test_words_heads_cells_and_relations_are_followed(compared, open_page):
    page = open_page(compared)
    page.get_by_role("option", name="near", exact=True).click()
    assert "“near”" in page.locator("#h-word").inner_text()
    page.locator("[data-place='7']").click()
    assert page.locator("#h-head").inner_text() == "Head 1.3"
    page.get_by_role("button", name="Who looks at it").click()
    assert page.get_by_role("button", name="Who looks at it").get_attribute("aria-pressed") == "true"
    for name in ("Layer 1, mean", "All, strongest", "Head 1.3"):
        page.get_by_role("group", name="Over which heads").get_by_role("button", name=name).click()
    relation = page.locator(".bars button").first
    relation.click()
    assert page.locator(".bars button[aria-pressed=true]").count() == 1
    page.get_by_role("group", name="What the squares show").get_by_role("button").last.click()
    assert page.locator(".kind").first.inner_text() != ""
    page.get_by_role("button", name="Maps", exact=True).click()
    page.get_by_role("button", name="Own scale").click()
    page.get_by_role("button", name="Lines", exact=True).click()
    assert page.locator(".figure [data-pair]").count() > 4
    page.get_by_label("also special tokens, punctuation, the word itself").check()
    assert page.locator(".bar-name", has_text="[CLS]").count() >= 1
    page.get_by_label("Hide special tokens").check()
    page.locator("details summary").first.click()
    page.locator(".token.selected").first.click()  # a second click lets go of the word
    assert "Click a word" in page.locator("#limelight").inner_text()


@pytest.mark.parametrize("width", [1400, 400])
def test_every_view_is_saved(width, compared, open_page, tmp_path):
    page = open_page(compared, width=width)
    for view in VIEWS:
        name = "the texts" if view == "text" else f"the {view}"
        drawing = saved(page, f"Save {name} as SVG")
        root = xml.parse(drawing.path()).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        written = " ".join(root.itertext())
        assert "made-up" in written
        if view in ("text", "heads", "head"):
            assert "square-root scale" in written
        assert drawing.suggested_filename.startswith("limelight-made-up-")
        with open(saved(page, f"Save {name} as PNG").path(), "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
        with open(saved(page, f"Save {name} as CSV").path(), encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file)
        assert rows
        assert all(len(row) == len(header) for row in rows)


def test_saved_numbers_are_those_of_the_report(tmp_path, open_page):
    where, report = written(tmp_path, SENTENCE)
    page = open_page(where)
    page.get_by_role("option", name="The", exact=True).click()
    page.get_by_role("option", name="bank", exact=True).click()
    with open(saved(page, "Save the relations as CSV").path(), encoding="utf-8-sig", newline="") as file:
        rows = {(row["direction"], row["other"], row["group"]): row for row in csv.DictReader(file)}
    expected = [row for row in report.tables["relations"] if row["word"] == "bank"]
    assert len(expected) > 6
    for row in expected:
        group = "positional head" if row["positional"] else "content word" if row["content"] else "other word"
        found = rows[row["direction"], row["other"], group]
        assert (int(found["layer"]), int(found["head"])) == (row["layer"], row["head"])
        for name, theirs in (("weight", "weight"), ("even", "uniform"), ("usual", "at_offset"), ("lift", "lift")):
            assert float(found[name]) == pytest.approx(row[theirs], rel=2e-3, abs=1e-4), (row, name)


def test_a_hostile_text_is_saved_as_text(tmp_path, open_page):
    where, _ = written(tmp_path, HOSTILE)
    page = open_page(where)
    for view in VIEWS:
        root = xml.parse(saved(page, f"Save the {view} as SVG").path()).getroot()
        assert not [one for one in root.iter() if one.tag.endswith(("script", "foreignObject"))]
        assert "\x1b" not in saved(page, f"Save the {view} as CSV").path().read_text("utf-8-sig")


SEEN = """list => {
    const { top, bottom } = list.getBoundingClientRect();
    const inside = ({ top: above, bottom: below }) => above + below >= 2 * top && above + below <= 2 * bottom;
    const seen = [...list.querySelectorAll("[data-token]")].filter((token) => inside(token.getBoundingClientRect()));
    return seen.map((token) => [Number(token.dataset.token), token.textContent]);
}"""


@pytest.mark.parametrize("words", [600, 3000])
def test_a_scrolled_text_is_saved_as_it_is_seen(words, tmp_path, open_page):
    where, report = written(tmp_path, paragraphs(words), layers=1, heads=1)
    page = open_page(where)
    tokens = page.get_by_role("listbox")
    for part in (0.0, 0.41, 1.0):
        tokens.evaluate(f"list => list.scrollTop = {part} * list.scrollHeight")
        page.wait_for_timeout(200)
        seen = tokens.evaluate(SEEN)
        assert 40 < len(seen) < 400
        root = xml.parse(saved(page, "Save the text as SVG").path()).getroot()
        title = root.find("{*}title").text
        length = report.readings[0].length
        assert title == f"The text, tokens {seen[0][0] + 1:,} to {seen[-1][0] + 1:,} of {length:,}"
        group = root.findall("{*}g")[-1]
        assert [text.text for text in group.iterfind(".//{*}text")] == [text.strip() for _, text in seen]
        down = float(group.get("transform").split()[1].rstrip(")"))
        height = float(root.get("viewBox").split()[3])
        heights = [float(text.get("y")) + down for text in group.iterfind(".//{*}text")]
        assert 34 < min(heights) < max(heights) < height - 40


def test_a_text_that_does_not_scroll_is_saved_whole(compared, open_page):
    root = xml.parse(saved(open_page(compared), "Save the texts as SVG").path()).getroot()
    assert root.find("{*}title").text == "The texts"


def test_a_link_restores_the_state(compared, open_page):
    page = open_page(compared)
    page.get_by_role("option", name="money", exact=True).click()
    page.locator("[data-place='5']").click()
    page.get_by_role("button", name="Who looks at it").click()
    page.get_by_role("button", name="Lines", exact=True).click()
    page.get_by_label("Hide special tokens").check()
    page.get_by_role("button", name="Dark", exact=True).click()
    page.wait_for_url(re.compile("theme=dark"))
    link = page.evaluate("location.hash")
    again = open_page(compared, hash=link)
    for selector in ("#h-word", "#h-head", ".said", ".text-panel .caption"):
        assert again.locator(selector).inner_text() == page.locator(selector).inner_text()
    assert again.locator("[data-pair]").count() == page.locator("[data-pair]").count() > 0
    assert again.locator("html").get_attribute("data-theme") == "dark"
    assert again.get_by_label("Hide special tokens").is_checked()
    open_page(
        compared, hash="#token=99999&layer=x&head=-1&scope=<b>&other=1e9&text=7"
    )  # says nothing, and does no harm


def test_the_keyboard_is_enough(compared, open_page):
    page = open_page(compared)
    page.locator(".token[tabindex='0']").first.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert "“river”" in page.locator("#h-word").inner_text()
    assert page.locator("[role=status].unseen").inner_text() != ""
    page.locator(".cell[tabindex='0']").focus()
    page.keyboard.press("Home")
    assert page.locator("#h-head").inner_text() == "Head 0.0"
    page.keyboard.press("ArrowDown")
    assert page.locator("#h-head").inner_text() == "Head 1.0"
    page.locator("[data-focus='figure 0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert "The → The" in page.locator("[role=status].unseen").inner_text()
    page.keyboard.press("Enter")
    assert "“The”" in page.locator("#h-word").inner_text()
    page.get_by_role("button", name="Lines", exact=True).press("Enter")
    page.locator(".figure [tabindex='0']").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.get_by_role("button", name="Who looks at it").get_attribute("aria-pressed") == "true"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, [role=img]')].filter("
        "e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label'))).map(e => e.outerHTML)"
    )
    assert unnamed == []


def test_a_long_text_is_found_by_search_map_and_chips(tmp_path, open_page):
    where, report = written(tmp_path, paragraphs(1500), causal=True)
    reading = report.readings[0]
    assert not reading.exact
    page = open_page(where)
    assert re.search(r"word [\d,]+ of 1,\d\d\d", page.locator(".text-panel .caption").inner_text())
    assert page.locator(".chip").count() == len(report.chosen[0])
    page.locator(".chip").last.click()
    assert page.locator(".chip[aria-pressed=true]").count() == 1
    page.get_by_role("searchbox").fill("understanding")
    count = len(reading.find("understanding"))
    assert page.locator(".count").inner_text() == f"1 of {count}"
    page.keyboard.press("Enter")
    assert page.locator(".count").inner_text() == f"2 of {count}"
    hit = int(page.locator(".token.hit").get_attribute("data-token"))
    assert reading.words[reading.tokens[hit].word].text == "understanding"
    page.get_by_role("searchbox").fill("nowhere")
    assert page.locator(".count").inner_text() == "not found"
    before = page.evaluate("document.querySelector('.tokens').scrollTop")
    box = page.locator(".minimap").bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + 9)
    assert page.evaluate("document.querySelector('.tokens').scrollTop") > before + 100
    assert "≥" in page.locator("#h-word").locator("xpath=../..").inner_text()  # explained


def test_right_to_left_texts_keep_their_direction(tmp_path, open_page):
    where, _ = written(tmp_path, HEBREW, SENTENCE)
    page = open_page(where)
    lists = page.locator(".tokens")
    assert [lists.nth(n).get_attribute("dir") for n in (0, 1)] == ["rtl", "ltr"]
    places = page.evaluate(
        "[...document.querySelectorAll('[dir=rtl] .token')].map(e => e.getBoundingClientRect().left)"
    )
    assert places == sorted(places, reverse=True)  # on one line, from right to left
    page.get_by_role("option", name="הבנק", exact=True).click()
    page.locator(".bars button").first.click()
    label = page.locator(".bars button").first.get_attribute("aria-label")
    assert re.match("\u2068[\u0590-\u05ff]+\u2069 looks at ", label)


def test_the_strip_sticks_on_a_narrow_page(compared, open_page):
    page = open_page(compared, width=400)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.evaluate("window.scrollTo(0, 1600)")
    page.wait_for_timeout(100)
    box = page.locator(".tokens").first.bounding_box()
    assert 0 <= box["y"] < 60


def test_unknown_tokens_are_announced(tmp_path, open_page):
    report = mock_report((SENTENCE,), 2, 2)
    reading = dataclasses.replace(report.readings[0], unknown=(2,))
    write_page(dataclasses.replace(report, readings=(reading,)), tmp_path / "page.html")
    page = open_page(tmp_path / "page.html")
    assert "1 of 9 tokens are unknown" in page.locator(".warning").inner_text()
    assert page.locator(".token.unknown").count() == 1


def test_it_prints_in_light_colours(compared, open_page):
    page = open_page(compared, theme="dark")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    assert len(page.pdf(print_background=True)) > 10_000
