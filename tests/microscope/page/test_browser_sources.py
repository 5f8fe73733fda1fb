"""The pages of translations, sounds and pictures in a real browser, where there is one."""

import csv
import xml.etree.ElementTree as xml

import numpy as np
import pytest
import torch
from support.families import IMAGES
from support.made_up import OTHER, SENTENCE
from support.made_up_sources import mock_listening, mock_picture, mock_speech, mock_translation, without_words

from limelight.microscope import look, write_page

HOSTILE = "</script><img src=x onerror=document.title='gone'> <b>river</b> =1+1 {{view}} \u202e\x1b[31m ]]>"
HEBREW = "הבנק נמצא ליד הנהר, והסירה river עומדת."
VIEWS = {
    "translation": ("alignment", "strongest", "table", "heads", "map"),
    "speech": ("sound", "strongest", "table", "heads", "map"),
    "picture": ("picture", "heads", "head", "numbers", "layers"),
}


def made(kind, text=SENTENCE):
    if kind == "translation":
        return mock_translation(text, text)
    return mock_speech(text) if kind == "speech" else mock_picture()


def written(tmp_path, report):
    write_page(report, tmp_path / "page.html")
    return tmp_path / "page.html"


def saved(page, button):
    page.wait_for_timeout(150)  # Chromium drops downloads that follow one another faster
    with page.expect_download() as download:
        page.get_by_role("button", name=button, exact=True).click()
    return download.value


def table(page, name):
    with open(saved(page, f"Save the {name} as CSV").path(), encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_nothing_was_written(tmp_path, open_page):
    for report in (mock_translation("x", "..."), mock_speech("...")):
        page = open_page(written(tmp_path, without_words(report)))
        assert "Click a word" in page.locator(".said").inner_text()
        assert page.get_by_role("gridcell").count() == 6


def narrow(page):
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# --- Translations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (400, "dark")])
@pytest.mark.parametrize(
    ("source", "target"),
    [(SENTENCE, OTHER), (HOSTILE, HEBREW), (HEBREW, HOSTILE), ("x", "y"), (SENTENCE * 9, OTHER * 9)],
)
def test_a_translation_draws_itself(source, target, width, theme, tmp_path, open_page):
    report = mock_translation(source, target)
    page = open_page(written(tmp_path, report), width=width, theme=theme)
    lists = page.get_by_role("listbox")
    assert lists.nth(0).get_by_role("option").count() == len(report.cross.units)
    assert lists.nth(1).get_by_role("option").count() == len(report.readings[0].words)
    assert page.locator("main img").count() == 0
    assert not page.title().startswith("gone")
    assert narrow(page)
    assert page.locator(".cross-line.strong").count() >= 1
    for number, text in enumerate((source, target)):
        assert lists.nth(number).get_attribute("dir") == ("rtl" if text == HEBREW else "ltr")


def test_words_of_both_sides_are_followed(tmp_path, open_page):
    report = mock_translation(SENTENCE, "Understandingly, " + OTHER)
    page = open_page(written(tmp_path, report))
    source, target = page.get_by_role("listbox", name="Words of the source"), page.get_by_role("listbox", name="target")
    row = next(row for row in report.tables["alignment"] if row["word"] == "money")
    target.get_by_role("option", name="money", exact=True).click()
    page.mouse.move(5, 5)
    partner = source.locator(".partner")
    assert partner.inner_text() == row["source"]
    share = f"{100 * row['weight']:.0f}" if row["weight"] >= 0.1 else f"{100 * row['weight']:.1f}"
    said = page.locator(".said").inner_text()
    assert said.startswith(f"money takes {share}\u00a0% of its attention to the source from {row['source']} ")
    source.get_by_role("option", name="river", exact=True).hover()  # shown while the pointer is there
    assert "on this word of the source" in page.locator(".cross-panel .caption").inner_text()
    page.mouse.move(5, 5)
    assert "of this word’s attention" in page.locator(".cross-panel .caption").inner_text()
    source.get_by_role("option", name="river", exact=True).click()
    assert "which words look at it" in page.locator("#h-strongest").inner_text()
    page.keyboard.press("Escape")
    target.get_by_role("option").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert target.get_by_role("option").nth(2).get_attribute("aria-selected") == "true"
    page.locator("[data-place='4']").click()
    assert page.locator("#h-cross-map").inner_text() == "Head 1.1"
    page.get_by_role("button", name="Layer 1, mean").click()
    page.locator(".bars button").first.click()
    assert page.locator(".bars button[aria-pressed=true]").count() >= 1
    page.get_by_role("button", name="Understandingly", exact=True).click()  # in the table
    page.get_by_role("group", name="Which token of the word").get_by_role("button").last.click()
    page.get_by_role("img", name="Map of the cross-attention").focus()
    page.keyboard.press("ArrowDown")
    assert "→" in page.get_by_role("status").inner_text()


def test_saved_weights_are_those_of_the_report(tmp_path, open_page):
    report = mock_translation(SENTENCE, OTHER)
    page = open_page(written(tmp_path, report))
    for place, (layer, head) in enumerate(np.ndindex(2, 3)):
        page.locator(f"[data-place='{place}']").click()
        rows = table(page, "alignment")
        name = next(key for key in rows[0] if key.startswith("weight"))
        assert name == f"weight, head {layer}.{head}"
        found = np.array([float(row[name]) for row in rows]).reshape(report.cross.by_word.shape[2:])
        np.testing.assert_allclose(found, report.cross.by_word[layer, head], atol=2e-5)
    rows = table(page, "table")
    assert [(row["word"], row["source"]) for row in rows] == [
        (row["word"], row["source"]) for row in report.tables["alignment"]
    ]


def test_both_sides_have_the_views_of_a_text(tmp_path, open_page):
    report = mock_translation(SENTENCE, OTHER)
    page = open_page(written(tmp_path, report))
    page.get_by_role("button", name="Encoder self-attention").click()
    assert page.get_by_role("option").count() == report.source.readings[0].length
    page.get_by_role("option", name="near", exact=True).click()
    page.get_by_role("button", name="Who looks at it").click()
    page.wait_for_url(lambda address: "view=encoder" in address and "direction=to" in address)
    again = open_page(page.url)
    assert "near" in again.locator("[role=option][aria-selected=true]").inner_text()
    assert again.get_by_role("button", name="Who looks at it").get_attribute("aria-pressed") == "true"
    again.get_by_role("button", name="Decoder self-attention").click()
    assert again.get_by_role("option").count() == report.readings[0].length
    again.get_by_role("button", name="Dark", exact=True).click()
    assert again.locator("html").get_attribute("data-theme") == "dark"
    again.get_by_role("button", name="Cross-attention", exact=True).click()
    assert again.get_by_role("listbox").count() == 2
    alone = open_page(written(tmp_path, mock_translation(SENTENCE, OTHER, encoder=False)))
    assert alone.get_by_role("button", name="Encoder self-attention").count() == 0


# --- Sounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "theme"), [(1400, "dark"), (400, "light")])
@pytest.mark.parametrize(("text", "seconds"), [(SENTENCE, 4.0), (HOSTILE, 20.0), (HEBREW, 1.0), ("x", 0.1)])
def test_a_sound_draws_itself(text, seconds, width, theme, tmp_path, open_page):
    report = mock_speech(text, seconds)
    page = open_page(written(tmp_path, report), width=width, theme=theme)
    assert page.get_by_role("option").count() == len(report.readings[0].words)
    size = page.locator(".spectrum").evaluate("canvas => [canvas.width, canvas.height]")
    assert size == [round(100 * seconds), 80]
    assert page.locator("main img").count() == 0
    assert narrow(page)


def test_a_time_selects_the_word_that_is_said(tmp_path, open_page):
    report = mock_speech(SENTENCE)
    page = open_page(written(tmp_path, report))
    rows = report.tables["alignment"]
    picture = page.locator(".sound-picture")
    box = picture.bounding_box()
    for row in rows[1:5]:
        middle = (row["start"] + row["end"]) / 2
        picture.click(position={"x": middle / 4.0 * box["width"], "y": 40})
        assert page.locator("[role=option][aria-selected=true]").inner_text() == row["word"]
        assert f"{row['start']:.2f} to {row['end']:.2f} s" in page.locator(".said").inner_text()
    assert "10.0\u00a0% of it lies on the silence" in page.locator(".caption").first.inner_text()
    page.get_by_role("option", name="river", exact=True).click()
    found = table(page, "sound")
    weights = np.array([float(row[next(key for key in row if key.startswith("weight"))]) for row in found])
    number = [row["word"] for row in rows].index("river")
    first = report.readings[0].words[number].tokens[0]
    np.testing.assert_allclose(weights, report.cross.weights[1, 0, first - 1], atol=2e-5)
    times = table(page, "table")
    assert [float(row["end"]) for row in times] == pytest.approx([row["end"] for row in rows])
    page.locator(".sound-curve").hover()
    assert page.locator(".tip").inner_text().count("\n") == 2


@pytest.mark.parametrize(("width", "theme"), [(1400, "light"), (400, "dark")])
def test_the_encoder_is_shown_over_the_sound(width, theme, tmp_path, open_page):
    encoder = mock_listening(4.0)
    (reading,) = encoder.readings
    assert (reading.length, reading.keys) == (100, 750)
    page = open_page(written(tmp_path, mock_speech(SENTENCE, encoder=encoder)), width=width, theme=theme)
    page.get_by_role("button", name="Encoder self-attention").click()
    assert narrow(page)
    assert page.get_by_role("option").count() == 100
    assert "A token is a part of the sound of 0.04 seconds (2 states" in page.locator("footer").inner_text()
    picture = page.locator(".sound-picture")
    at = picture.bounding_box()["width"] * 2.09 / 4.0
    picture.click(position={"x": at, "y": 40})
    assert page.locator("[role=option][aria-selected=true]").inner_text() == "2.08 s"
    band = page.locator(".sound-band")
    assert abs(band.bounding_box()["x"] - picture.bounding_box()["x"] - at) < 20
    page.locator("[data-place='3']").click()
    page.get_by_role("button", name="Where it looks").click()
    rows = table(page, "sound")
    weights = [float(row[next(key for key in row if key.startswith("weight"))]) for row in rows]
    np.testing.assert_allclose(weights, reading.shares[1, 0, 52], atol=2e-5)
    assert [float(row["even"]) for row in rows] == pytest.approx([1 / 750] * 100, rel=1e-5)
    assert page.get_by_role("rowheader", name="on the silence behind the sound").count() == 1
    page.wait_for_url(lambda address: "view=encoder" in address and "token=52" in address)
    again = open_page(page.url, width=width)
    assert again.locator("[role=option][aria-selected=true]").inner_text() == "2.08 s"
    root = xml.parse(saved(again, "Save the sound as SVG").path()).getroot()
    assert "2.08 s" in " ".join(root.itertext())


# --- Pictures --------------------------------------------------------------------------------------------------------


def drawing(name):
    """A report of a tiny random model over a picture of noise, whose numbers are between 0 and 1."""
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    return picture, look(IMAGES[name].build(), picture)


@pytest.mark.parametrize(("name", "before"), [("vit", 1), ("dinov2", 1), ("clip vision", 1), ("siglip vision", 0)])
def test_a_picture_of_every_family(name, before, tmp_path, open_page):
    pixels, report = drawing(name)
    page = open_page(written(tmp_path, report))
    assert page.get_by_role("gridcell").count() == 8
    assert page.locator(".picture-chips button").count() == before
    page.get_by_role("button", name="Off", exact=True).click()
    shown = page.locator(".picture canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(canvas.width / 32, canvas.height / 32, 1, 1).data]"
    )
    assert shown[:3] == pytest.approx((255 * pixels[:, 0, 0]).tolist(), abs=16)  # smoothed
    page.get_by_role("button", name="Colours", exact=True).click()
    picture = page.get_by_role("application")
    size = picture.bounding_box()
    picture.click(position={"x": size["width"] * 3.5 / 4, "y": size["height"] * 2.5 / 4})
    assert page.locator("#h-path").inner_text() == "“r2c3” through the layers"
    weights = report.pictures[0].weights
    token = before + 11
    for place, (layer, head) in enumerate(np.ndindex(2, 4)):
        page.locator(f"[data-place='{place}']").click()
        of = weights[layer, head]
        for button, row in (("Where it looks", of[token]), ("Who looks at it", of[:, token])):
            page.get_by_role("button", name=button).click()
            rows = table(page, "picture")
            name = next(key for key in rows[0] if "r2c3" in key)
            found = [float(line[name]) for line in rows]
            np.testing.assert_allclose(found, row, atol=2e-5)
    heads = {(int(row["layer"]), int(row["head"])): float(row["r0c0"]) for row in table(page, "heads")}
    assert heads[1, 2] == pytest.approx(weights[1, 2, before, token], abs=2e-5)


def test_a_patch_is_chosen_by_keys_and_links(tmp_path, open_page):
    page = open_page(written(tmp_path, mock_picture()), width=400)
    assert narrow(page)
    picture = page.get_by_role("application")
    picture.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.get_by_role("status").inner_text().startswith("r1c1")
    assert page.locator(".patch-mark").get_attribute("x") == "1"
    page.get_by_role("button", name="All, strongest").click()
    page.get_by_role("button", name="Colours", exact=True).click()
    page.wait_for_url(lambda address: "veil=colours" in address)
    again = open_page(page.url, theme="dark")
    assert again.get_by_role("button", name="Colours", exact=True).get_attribute("aria-pressed") == "true"
    assert again.locator("#h-path").inner_text() == "“r1c1” through the layers"
    again.keyboard.press("Tab")
    again.get_by_role("application").press("Escape")
    assert "Click a patch" in again.locator(".said").inner_text()


def test_patches_that_are_joined(tmp_path, open_page, monkeypatch):
    monkeypatch.setattr("limelight.microscope.reading.pictures.CELLS", 400)
    _, report = drawing("vit")
    assert report.pictures[0].join == 2
    page = open_page(written(tmp_path, report))
    page.get_by_role("application").click(position={"x": 5, "y": 5})
    assert "2 × 2 patches" in page.locator(".caption").first.inner_text()
    assert len(table(page, "picture")) == 5


def test_two_pictures_stand_side_by_side(tmp_path, open_page):
    first, second = (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    page = open_page(written(tmp_path, look(IMAGES["vit"].build(), first, compare=second)))
    assert page.get_by_role("application").count() == 2
    page.get_by_role("application").nth(1).click(position={"x": 5, "y": 5})
    assert len(table(page, "picture")) == 34


# --- All of them -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("kind", list(VIEWS))
def test_every_view_is_saved(kind, width, tmp_path, open_page):
    page = open_page(written(tmp_path, made(kind, HOSTILE if width == 400 else SENTENCE)), width=width)
    for view in VIEWS[kind]:
        drawing = saved(page, f"Save the {view} as SVG")
        root = xml.parse(drawing.path()).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "made-up" in " ".join(root.itertext())
        assert not [one for one in root.iter() if one.tag.endswith(("script", "foreignObject"))]
        assert drawing.suggested_filename.startswith("limelight-made-up-")
        with open(saved(page, f"Save the {view} as PNG").path(), "rb") as file:
            assert file.read(8) == b"\x89PNG\r\n\x1a\n"
        with open(saved(page, f"Save the {view} as CSV").path(), encoding="utf-8-sig", newline="") as file:
            header, *rows = csv.reader(file)
        assert rows
        assert all(len(row) == len(header) for row in rows)
        assert "\x1b" not in "".join(header) + "".join(map("".join, rows))


@pytest.mark.parametrize("kind", ["translation", "speech"])
def test_a_link_restores_the_state(kind, tmp_path, open_page):
    where = written(tmp_path, made(kind))
    page = open_page(where)
    page.get_by_role("option", name="near", exact=True).last.click()
    page.locator("[data-place='5']").click()
    page.get_by_role("button", name="Dark", exact=True).click()
    page.wait_for_url(lambda address: "theme=dark" in address)
    again = open_page(page.url)
    assert again.locator("html").get_attribute("data-theme") == "dark"
    assert again.locator("[role=option][aria-selected=true]").inner_text() == "near"
    assert again.locator("#h-cross-map").inner_text() == "Head 1.2"
    for odd in ("#word=99&cross=9.9&over=<b>&view=atlas", "#part=-1", "#word=1&piece=7&theme=blue", "#%00=&&=1"):
        assert open_page(where, hash=odd).get_by_role("gridcell").count() == 6


@pytest.mark.parametrize("kind", list(VIEWS))
def test_it_prints_in_light_colours(kind, tmp_path, open_page):
    page = open_page(written(tmp_path, made(kind)), theme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("html").get_attribute("data-theme") == "light"
    page.emulate_media(media="print")
    assert not page.get_by_role("button", name="Save the heads as SVG").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("html").get_attribute("data-theme") == "dark"


# --- Real models -----------------------------------------------------------------------------------------------------


def test_a_real_translation(translator, tmp_path, open_page):
    report = look(translator, "The bank of the river was covered with flowers.")
    page = open_page(written(tmp_path, report))
    page.get_by_role("listbox", name="target").get_by_role("option", name="rio", exact=True).click()
    assert page.locator(".partner").inner_text() == "river"
    assert page.get_by_role("button", name="Decoder self-attention").count() == 0  # this decoder has none
    assert page.get_by_role("button", name="Encoder self-attention").count() == 1


def test_a_real_sound(whisper, beckett, tmp_path, open_page):
    page = open_page(written(tmp_path, look(whisper, beckett)))
    picture = page.locator(".sound-picture")
    picture.click(position={"x": 8.6 / 9.96 * picture.bounding_box()["width"], "y": 20})
    assert page.locator("[role=option][aria-selected=true]").inner_text() == "better"
