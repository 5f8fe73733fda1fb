"""The page of an atlas in a real browser: every view opened, clicked, sorted and saved, and nothing leaves the page."""

import csv
import io
import re
from xml.etree import ElementTree

import pytest
from support.atlas_made_up import MadeUpAtlas, mock_atlas

from limelight.microscope import Atlas, AtlasComparison
from limelight.microscope.page import write_atlas

VIEWS = ("the grid", "the head", "the examples", "the plot", "the table", "the layers")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The page of 6 layers of 12 heads."""
    path = tmp_path_factory.mktemp("atlas") / "atlas.html"
    write_atlas(MadeUpAtlas(6, 12), path)
    return path


def cells(page):
    return page.get_by_role("gridcell")


def heading(page):
    return page.locator("#h-head").inner_text()


def rows(page):
    return page.locator(".head-table tbody tr")


def test_the_page_says_what_was_found(written, open_page):
    page = open_page(written)
    atlas = MadeUpAtlas(6, 12).values
    holders = {(role["layer"], role["head"]) for role in atlas["roles"] if role["role"] != "sink"}
    lead = page.locator(".atlas-lead").inner_text()
    assert f"{len(holders)} heads of 72 in made-up hold a role" in lead
    assert f"for {72 - len(holders)} no role was found" in lead
    assert "102,720 tokens" in lead
    assert "Click a head" in lead
    assert cells(page).count() == 72
    assert "attention weight is not an explanation" in lead
    assert "no claim tested here holds" in page.locator(".notes").inner_text()


def test_a_head_shows_its_evidence(written, open_page):
    page = open_page(written)
    role = MadeUpAtlas(6, 12).values["roles"][0]
    cells(page).nth(role["layer"] * 12 + role["head"]).click()
    assert heading(page) == f"Head {role['layer']}.{role['head']}"
    claim = page.locator(".claim").first
    assert role["role"] in claim.inner_text()
    for name in ("held-out half", "chosen half", "baseline", "shuffled text", "needed at least", "cases"):
        assert name in claim.inner_text()
    assert page.locator("#h-examples").inner_text().startswith(heading(page))
    assert page.locator(".examples li").count() == 8
    assert page.locator(".examples li").first.locator("mark").count() in (1, 2)
    assert page.locator(".example-map rect").count() > 32 * 32
    page.locator(".chip").first.click()
    assert heading(page) != f"Head {role['layer']}.{role['head']}"
    for details in page.locator("details").all():
        details.locator("summary").click()
    page.locator("details .word-button").nth(2).click()
    assert page.get_by_label("Colour by").locator("option:checked").inner_text() == "offset +0"


def test_a_head_without_a_role_says_so(written, open_page):
    page = open_page(written)
    held = {(role["layer"], role["head"]) for role in MadeUpAtlas(6, 12).values["roles"] if role["role"] != "sink"}
    layer, head = next((n // 12, n % 12) for n in range(72) if (n // 12, n % 12) not in held)
    cells(page).nth(layer * 12 + head).click()
    assert "No role found: none of the 9 claims tested holds" in page.locator(".head-summary").inner_text()
    assert page.locator(".claim.holds").count() == 0


def test_the_grid_is_used_with_the_keyboard(written, open_page):
    page = open_page(written)
    cells(page).nth(0).click()
    assert page.locator("[role=gridcell][tabindex='0']").count() == 1
    for key, expected in (
        ("ArrowRight", "0.1"),
        ("ArrowDown", "1.1"),
        ("ArrowLeft", "1.0"),
        ("ArrowUp", "0.0"),
        ("ArrowUp", "0.0"),
        ("End", "5.11"),
    ):
        page.keyboard.press(key)
        assert heading(page) == f"Head {expected}"
    focused = page.evaluate("[document.activeElement.role, document.activeElement.getAttribute('aria-selected')]")
    assert focused == ["gridcell", "true"]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "h-head"


def test_colours_follow_the_measure_and_roles_stand_out(written, open_page):
    page = open_page(written)
    colours = "[...document.querySelectorAll('[role=gridcell]')].map((cell) => cell.style.background)"
    before = page.evaluate(colours)
    page.get_by_label("Colour by").select_option(label="entropy")
    assert page.evaluate(colours) != before
    assert "nats" in page.locator(".atlas-legend").inner_text()
    assert "baseline, median head" in page.locator(".atlas-legend").inner_text()
    assert "Baseline: even spread." in page.locator("section:has(#h-grid) > .caption").inner_text()
    page.get_by_label("Colour by").select_option(label="similar words")
    assert "−" in page.locator(".atlas-legend").inner_text()
    page.get_by_label("Sinks").check()
    assert page.locator(".head-cell.sink").count() > 0
    key = page.locator(".role-key").first
    key.click()
    holders = int(key.locator(".quiet").inner_text())
    assert page.locator(".head-cell:not(.dim)").count() == holders
    assert rows(page).count() == holders
    page.get_by_label("Roles", exact=True).uncheck()
    assert "".join(cells(page).all_inner_texts()) == ""
    page.get_by_role("combobox", name="Across").select_option(label="entropy")
    assert page.locator("[data-point]").count() == 72
    page.locator("[data-point='5']").click(force=True)
    assert heading(page) == "Head 0.5"


def test_the_table_is_sorted_and_filtered(written, open_page):
    page = open_page(written)
    table = page.locator(".head-table")
    scores = [float(text) for text in table.locator("td.score").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    page.get_by_role("button", name="Every head").click()
    assert rows(page).count() == 72
    page.get_by_role("button", name="Head", exact=True).click()
    assert table.locator("th[aria-sort=ascending]").inner_text().startswith("Head")
    assert rows(page).first.inner_text().startswith("0.0")
    page.get_by_role("button", name="Head", exact=True).click()
    assert table.locator("th[aria-sort=descending]").count() == 1
    assert rows(page).first.inner_text().startswith("5.11")
    search = page.get_by_label("Filter the table")
    search.fill("3.")
    assert rows(page).count() == 12
    search.press_sequentially("4")
    assert rows(page).count() == 1
    assert page.evaluate("document.activeElement.type") == "search"
    rows(page).first.click()
    assert heading(page) == "Head 3.4"
    search.fill("no such role")
    assert "Nothing matches." in table.inner_text()


def test_a_link_restores_the_state(written, open_page):
    page = open_page(written)
    page.get_by_label("Colour by").select_option(label="entropy")
    cells(page).nth(40).click()
    page.get_by_role("button", name="Every head").click()
    page.get_by_role("button", name="Sink", exact=True).click()
    page.get_by_label("Filter the table").fill("no role")
    page.wait_for_url(re.compile("find=no"))  # written a moment later
    link = page.url
    assert "head=3.4" in link
    shown = ("select", "#h-head", ".head-table", ".examples", ".atlas-legend")
    state = f"{list(shown)}.map((part) => [document.querySelector(part)].map((e) => e.value ?? e.textContent))"
    again = open_page(link)
    assert again.evaluate(state) == page.evaluate(state)
    again.evaluate("location.hash = '#head=1.7'")
    again.wait_for_function("document.getElementById('h-head').textContent === 'Head 1.7'")
    lost = open_page(written, hash="#head=99.1&measure=none&sort=-nothing&rows=x&role=%00&show=difference")
    assert lost.get_by_role("gridcell").count() == 72


@pytest.mark.parametrize("name", VIEWS)
def test_every_view_is_saved(written, open_page, name):
    page = open_page(written, accept_downloads=True)
    saved = {}
    for ending in ("SVG", "PNG", "CSV"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name} as {ending}").click()
        assert re.fullmatch(r"limelight-made-up-atlas-[\w.-]+\." + ending.lower(), download.value.suggested_filename)
        saved[ending] = download.value.path().read_bytes()
    figure = ElementTree.fromstring(saved["SVG"])
    texts = [element.text for element in figure.iter("{http://www.w3.org/2000/svg}text") if element.text]
    assert any("Emma" in text for text in texts)
    assert "NaN" not in saved["SVG"].decode()
    assert "script" not in {element.tag.rsplit("}")[-1] for element in figure.iter()}
    assert saved["PNG"].startswith(b"\x89PNG")
    width = int.from_bytes(saved["PNG"][16:20], "big")
    assert width == 2 * int(float(figure.get("width")))
    table = list(csv.reader(io.StringIO(saved["CSV"].decode("utf-8-sig"))))
    assert len(table) > 1
    assert len({len(row) for row in table}) == 1


def test_saved_numbers_are_those_of_the_atlas(written, open_page):
    page = open_page(written, accept_downloads=True, hash="#measure=repeated+random+tokens+induction")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save the grid as CSV").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text("utf-8-sig"))))
    measure = next(m for m in MadeUpAtlas(6, 12).values["measures"] if m["detail"] == "induction")
    for row in rows:
        layer, head = int(row["layer"]), int(row["head"])
        assert float(row["repeated random tokens induction"]) == pytest.approx(
            measure["total"]["score"][layer][head], abs=1e-4
        )
        assert float(row["shuffled text"]) == pytest.approx(measure["control"][layer][head], abs=1e-4)


HOSTILE = "</script><img src=x onerror=document.title='gone'><b>river</b> {{view}} \ud83d \x00 =1+1"


def test_hostile_texts_are_inert(tmp_path, open_page):
    atlas = MadeUpAtlas(2, 3, name=HOSTILE)
    values = atlas.values
    values["corpus"]["name"] = values["corpus"]["probes"][0]["name"] = values["notes"][0] = HOSTILE
    values["classes"]["names"][0] = values["picture"]["tokens"][0] = HOSTILE
    for measure in values["measures"]:
        measure["detail"] = f"{measure['detail']} {HOSTILE}"
        measure["baseline_name"] = measure["unit"] = HOSTILE
        if measure["claim"]:
            measure["claim"]["role"] = measure["claim"]["source"] = HOSTILE
    values["roles"] = [{"layer": 0, "head": 0, "role": HOSTILE, "measure": "offset", "detail": f"-1 {HOSTILE}"}]
    for example in values["examples"]:
        example["tokens"] = [HOSTILE] * len(example["tokens"])
    write_atlas(atlas, tmp_path / "atlas.html")
    page = open_page(tmp_path / "atlas.html", accept_downloads=True)
    for cell in cells(page).all():
        cell.hover()
        cell.click()
    for details in page.locator("details").all():
        details.locator("summary").click()
    assert page.locator("main img, main b:text-is('river'), main script").count() == 0
    assert "gone" not in page.title()[:20]
    assert "<img src=x onerror=document.title='gone'>" in page.locator(".atlas-lead").inner_text()
    # Chromium refuses an eleventh download in a row.
    for name, ending in [
        *((name, "SVG") for name in VIEWS),
        ("the head", "CSV"),
        ("the examples", "CSV"),
        ("the table", "CSV"),
    ]:
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save {name} as {ending}").click()
        saved = download.value.path()
        if ending == "SVG":
            tags = {element.tag.rsplit("}")[-1] for element in ElementTree.parse(saved).iter()}
            assert tags <= {"svg", "g", "rect", "path", "text", "tspan", "title", "circle", "stop", "linearGradient"}
        else:
            cells_of = [cell for row in csv.reader(io.StringIO(saved.read_text("utf-8-sig"))) for cell in row]
            assert not any(re.match(r"[=+@]|-(?![\d.])", cell) for cell in cells_of)


def test_right_to_left_texts_run_in_their_own_direction(tmp_path, open_page):
    hebrew = "בראשית ברא אלהים את השמים ואת הארץ והארץ היתה תהו ובהו וחשך על פני תהום ורוח אלהים מרחפת על פני המים"
    write_atlas(MadeUpAtlas(2, 3, text=hebrew), tmp_path / "atlas.html")
    page = open_page(tmp_path / "atlas.html")
    assert page.evaluate("getComputedStyle(document.querySelector('.example-text')).direction") == "rtl"
    assert page.evaluate("getComputedStyle(document.body).direction") == "ltr"


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sizes", [(6, 12), (32, 32)])
def test_a_phone_shows_all_of_it(tmp_path, open_page, theme, sizes):
    write_atlas(MadeUpAtlas(*sizes), tmp_path / "atlas.html")
    page = open_page(tmp_path / "atlas.html", width=400, theme=theme)
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    cells(page).nth(7).click()
    page.wait_for_function("document.activeElement.id === 'h-head'")
    assert page.evaluate("document.getElementById('h-head').getBoundingClientRect().top") < 60
    page.get_by_role("button", name="Light" if theme == "dark" else "Dark").click()
    assert page.evaluate("document.documentElement.dataset.theme") != theme


def test_two_atlases_are_compared_head_by_head(tmp_path, open_page):
    write_atlas(MadeUpAtlas(4, 6), tmp_path / "both.html", MadeUpAtlas(4, 6, seed=1, name="tuned"))
    page = open_page(tmp_path / "both.html", hash="#measure=repeated+random+tokens+induction")
    assert "tuned" in page.locator(".atlas-lead").inner_text()
    page.get_by_role("button", name="Difference").click()
    assert "the other less this model" in page.locator(".atlas-legend").inner_text()
    assert re.search(r"induction \(random tokens\) [+−]?0\.\d+", cells(page).first.get_attribute("aria-label"))
    page.get_by_role("button", name="Every head").click()
    assert "The other" in page.locator(".head-table thead").inner_text()
    page.get_by_role("button", name="The other", exact=True).first.click()
    here, there = (MadeUpAtlas(4, 6, seed=seed).values for seed in (0, 1))
    score = [
        next(m for m in v["measures"] if m["detail"] == "induction")["total"]["score"][0][0] for v in (here, there)
    ]
    assert f"induction (random tokens) {score[1]:.3f}" in cells(page).first.get_attribute("aria-label")


def test_a_notebook_shows_the_page(tmp_path, open_page):
    one, other = (Atlas.from_dict(mock_atlas(2, 3, name=name)) for name in ("base", "tuned"))
    shown = one._repr_html_() + AtlasComparison(one, other)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8>{shown}", "utf-8")
    page = open_page(tmp_path / "notebook.html", ready="iframe >> nth=1")
    for number, text in enumerate(("of 6 in base", "tuned")):
        inside = page.frame_locator("iframe").nth(number)
        inside.locator(".atlas-lead").wait_for()
        assert text in inside.locator(".atlas-lead").inner_text()
        inside.get_by_role("gridcell").nth(4).click()
        assert inside.locator("#h-head").inner_text() == "Head 1.1"


def test_views_without_data_are_absent(tmp_path, open_page):
    atlas = MadeUpAtlas(1, 1)
    atlas.values.update(examples=[], similar=[], profile=None, classes=None, picture=None, roles=[])
    atlas.values["measures"] = atlas.values["measures"][:1]
    write_atlas(atlas, tmp_path / "atlas.html")
    page = open_page(tmp_path / "atlas.html")
    assert "0 heads of 1" in page.locator(".atlas-lead").inner_text()
    assert "No examples of this head were kept." in page.locator("main").inner_text()
    assert page.locator("#h-layers").count() == 0
    page.get_by_role("button", name="Roles found").click()
    assert "No role found in any head." in page.locator(".head-table").inner_text()


def test_it_prints_whole(written, open_page):
    page = open_page(written)
    page.emulate_media(media="print")
    assert page.locator(".save").first.is_hidden()
    scrolling = "[...document.querySelectorAll('.table-scroll, .grid-scroll')]"
    assert page.evaluate(f"{scrolling}.every((part) => part.scrollHeight <= part.clientHeight + 2)")
    assert page.pdf().startswith(b"%PDF")
