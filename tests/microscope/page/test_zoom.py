"""The page of a long text in a real browser: its heat map is refined by zooming, its text laid out near the view."""

import csv
import dataclasses
import itertools
import re
import sys

import numpy as np
import pytest
import torch
from support.made_up import mock_report, paragraphs
from support.made_up_subject import MadeUp, random_scores

from limelight.microscope import look, write_page

SIZES = re.compile(r"Cells of (\d+) × \d+ tokens|(Single) tokens")


@pytest.fixture
def long_text(tmp_path, monkeypatch):
    """The page of a text that is kept in blocks of 24 tokens and of 3, its report, and the exact weights."""
    module = sys.modules["limelight.microscope.reading.gathering"]
    monkeypatch.setattr(module, "EXACT_WEIGHTS", 0)
    monkeypatch.setattr(module, "BLOCKS", 10)
    subject = MadeUp(random_scores(sharpness=3.0))
    report = look(subject, paragraphs(160), words=["understanding"])
    write_page(report, tmp_path / "page.html")
    ids = list(subject.tokenize(report.readings[0].text).ids)
    return tmp_path / "page.html", report, subject.weights(ids).numpy()


def cell_size(page):
    found = SIZES.search(page.locator(".zoom-note").inner_text())
    return 1 if found[2] else int(found[1])


def settled(page):
    page.wait_for_timeout(350)  # a frame, and the time after which the part in view is written into the address


def sheet(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the head as CSV", exact=True).click()
    with open(download.value.path(), encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file)
    assert header[1:5] == ["first query", "last query", "first key", "last key"]
    return header[5], [(*map(int, row[1:5]), float(row[5])) for row in rows]


def zoom_in(page, times):
    for _ in range(times):
        page.get_by_role("button", name="Zoom in").click()
    settled(page)


def test_zooming_shows_finer_cells_and_the_weights_of_the_model(long_text, open_page):
    where, report, weights = long_text
    reading = report.readings[0]
    assert (reading.block, reading.refinement.block) == (24, 3)
    page = open_page(where)
    assert cell_size(page) == 3  # all of it fits into the map
    name, rows = sheet(page)
    layer, head = map(int, re.search(r"(\d+)\.(\d+)$", name).groups())
    assert len(rows) == sum(range(1, -(-reading.length // 3) + 1))
    cells = reading.refinement.cells[layer, head]
    refined = {(int(c) // reading.shares.shape[-1], int(c) % reading.shares.shape[-1]) for c in cells if c >= 0}
    checked = 0
    for query, last, key, end, share in rows:
        if (query // 24, key // 24) in refined:
            exact = weights[layer, head, query : last + 1, key : end + 1].sum(-1).mean()
            assert share == pytest.approx(exact, abs=2 * np.sqrt(exact) / 255 + 2e-5)
            checked += 1
    assert checked > 100
    zoom_in(page, 1)
    assert cell_size(page) == 1
    page.get_by_role("button", name="Zoom to the selected word").click()
    settled(page)
    token = int(page.locator(".token.selected").get_attribute("data-token"))
    assert any(token in reading.words[word].tokens for word in report.chosen[0])
    shown = {(query, key): share for query, _, key, _, share in sheet(page)[1]}
    known = dict(
        zip(*(part[layer, head, token].tolist() for part in (reading.top_keys, reading.top_weights)), strict=True)
    )
    seen = [key for key in known if (token, key) in shown]
    assert seen
    for key in seen:
        assert shown[token, key] == pytest.approx(weights[layer, head, token, key], abs=2e-5)


def test_wheel_keys_and_fingers_zoom(long_text, open_page):
    page = open_page(long_text[0])
    plot = page.locator(".zoom-plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.8 * box["height"])
    above = page.evaluate("scrollY")
    page.mouse.wheel(0, -40)
    settled(page)
    assert page.evaluate("scrollY") < above  # without the focus the wheel scrolls the page
    page.mouse.wheel(0, 40)
    settled(page)
    plot.focus()
    page.mouse.wheel(0, -600)
    settled(page)
    assert cell_size(page) == 1
    part = re.search(r"zoom=(\d+)\.(\d+)\.(\d+)", page.url)
    assert int(part[3]) < 120
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"] + 60, box["y"] + 0.8 * box["height"] + 60, steps=4)
    page.mouse.up()
    settled(page)
    moved = re.search(r"zoom=(\d+)\.(\d+)\.(\d+)", page.url)
    assert int(moved[1]) < int(part[1])
    again = open_page(long_text[0], hash="#" + page.url.partition("#")[2])  # the link restores the part in view
    settled(again)
    assert cell_size(again) == 1
    assert re.search(r"zoom=[\d.]+", again.url)[0] == moved[0]
    plot.press("Escape")
    settled(page)
    assert cell_size(page) == 3
    assert "zoom=" not in page.url
    plot.press("+")
    settled(page)
    assert cell_size(page) == 1
    plot.press("ArrowUp")
    assert " → " in page.get_by_role("status").last.inner_text()
    plot.press("Enter")
    assert page.locator(".token.selected").count() == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_two_fingers_on_a_narrow_page(long_text, open_page, theme):
    page = open_page(long_text[0], width=400, theme=theme, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    page.locator(".zoom-plot").scroll_into_view_if_needed()
    page.evaluate(
        """() => {
          const plot = document.querySelector(".zoom-plot"), box = plot.getBoundingClientRect();
          const at = (type, pointerId, x) => plot.dispatchEvent(new PointerEvent(type, {pointerId, pointerType: "touch",
            clientX: box.left + x, clientY: box.top + box.height / 2, bubbles: true, isPrimary: pointerId === 1}));
          plot.setPointerCapture = () => {};
          at("pointerdown", 1, 120); at("pointerdown", 2, 160);
          for (const x of [180, 220, 280]) at("pointermove", 2, x);
          at("pointerup", 2, 280); at("pointerup", 1, 120);
        }"""
    )
    settled(page)
    assert cell_size(page) == 1
    assert page.evaluate("document.querySelector('.zoom-plot canvas').width") > 200


def test_the_part_in_view_is_saved_as_a_drawing(long_text, open_page):
    page = open_page(long_text[0])
    zoom_in(page, 3)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the head as SVG", exact=True).click()
    drawing = download.value.path().read_text("utf-8")
    assert "Single tokens, queries" in drawing
    assert "square-root scale" in drawing
    assert drawing.count("<rect") > 50


def test_a_long_text_is_laid_out_near_the_view(tmp_path, open_page):
    report = mock_report((paragraphs(4000),), 2, 2, causal=True)
    write_page(report, tmp_path / "page.html")
    length = report.readings[0].length
    page = open_page(tmp_path / "page.html")
    tokens = page.get_by_role("option")
    assert 100 < tokens.count() < length / 2
    assert tokens.first.get_attribute("aria-setsize") == str(length)
    page.evaluate("document.querySelector('.tokens').scrollTop = 1e9")
    last = page.locator(f"[data-token='{length - 1}']")
    last.wait_for()
    page.wait_for_timeout(200)
    assert tokens.count() < length / 2
    last.click()
    assert last.get_attribute("aria-selected") == "true"
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("document.activeElement.dataset.token") == str(length - 2)
    page.evaluate("document.querySelector('.tokens').scrollTop = 0")
    page.locator("[data-token='0']").wait_for()
    joined = page.evaluate("document.querySelector('.tokens').innerText")
    whole = [word for word in re.split(r"\s+", report.readings[0].text) if word]
    pieces = re.sub(r"\s+", "", joined)
    assert pieces.startswith("".join(itertools.islice(whole, 60)))
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tokens.count() == length


def test_positions_beyond_the_training_are_a_warning_on_the_page(smollm2, tmp_path, open_page, monkeypatch):
    monkeypatch.setattr(smollm2.network, "config", dataclasses.replace(smollm2.network.config, limit=8))
    report = look(smollm2, "The boat on the river went past the old stone bank.")
    write_page(report, tmp_path / "page.html")
    page = open_page(tmp_path / "page.html")
    assert "smollm2 was trained on at most 8 positions" in page.locator(".warning").inner_text()
    assert torch.isfinite(torch.from_numpy(report.readings[0].shares)).all()
