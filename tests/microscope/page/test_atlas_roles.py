"""The roles of an atlas on the page of a text, and the way from there to the atlas."""

import json

import pytest
from support.atlas_made_up import MadeUpAtlas
from support.made_up import SENTENCE, mock_report

from limelight.cli import main
from limelight.formats.errors import ArgumentError
from limelight.microscope import write_atlas, write_page
from limelight.microscope.page.atlas_roles import pack_roles, relative_link


def test_roles_stand_beside_heads_and_lead_to_the_atlas(tmp_path, open_page):
    atlas = MadeUpAtlas(3, 4)
    (tmp_path / "a b#?").mkdir()
    there = tmp_path / "a b#?" / "atlas.html"
    write_atlas(atlas, there)
    write_page(mock_report((SENTENCE,), 3, 4), tmp_path / "page.html", atlas, there)
    page = open_page(tmp_path / "page.html")
    role = next(role for role in atlas.values["roles"] if role["role"] != "sink")
    cell = page.get_by_role("gridcell").nth(role["layer"] * 4 + role["head"])
    assert role["role"] in cell.get_attribute("aria-label")
    cell.click()
    line = page.locator(".atlas-roles")
    assert role["role"] in line.inner_text()
    assert "102,720 tokens of Emma" in line.inner_text()
    line.get_by_role("link").click()
    page.wait_for_selector("html[data-ready=yes] #h-examples")
    assert page.locator("#h-head").inner_text() == f"Head {role['layer']}.{role['head']}"


def test_without_an_atlas_nothing_is_said_of_roles(tmp_path, open_page):
    write_page(mock_report((SENTENCE,), 2, 3), tmp_path / "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.locator(".atlas-roles").count() == 0


def test_a_head_without_a_role_says_so_and_needs_no_page(tmp_path, open_page):
    atlas = MadeUpAtlas(2, 3)
    atlas.values["roles"] = []
    write_page(mock_report((SENTENCE,), 2, 3), tmp_path / "page.html", atlas)
    page = open_page(tmp_path / "page.html")
    assert "no role found" in page.locator(".atlas-roles").inner_text()
    assert page.locator(".atlas-roles a").count() == 0


def test_an_atlas_of_another_model_is_refused(tmp_path):
    with pytest.raises(ArgumentError, match="the atlas has 2 x 4, the model of the text 2 x 3"):
        write_page(mock_report((SENTENCE,), 2, 3), tmp_path / "page.html", MadeUpAtlas(2, 4))
    assert not list(tmp_path.iterdir())


def test_the_link_is_relative_and_of_no_scheme(tmp_path):
    page = tmp_path / "pages" / "page.html"
    assert relative_link(page, tmp_path / "atlas.html") == "./../atlas.html"
    assert relative_link(page, page.parent / "javascript:alert(1).html") == "./javascript%3Aalert%281%29.html"
    assert relative_link(page, page.parent / "ä #?.html") == "./%C3%A4%20%23%3F.html"


def test_roles_are_gathered_by_head():
    atlas = MadeUpAtlas(3, 4)
    packed = pack_roles(atlas, 3, 4, None)["atlas"]
    assert sum(len(names) for _, names in packed["roles"]) == len(atlas.values["roles"])
    assert [head for head, _ in packed["roles"]] == sorted(
        {row["layer"] * 4 + row["head"] for row in atlas.values["roles"]}
    )
    json.dumps(packed, allow_nan=False)


def test_an_atlas_needs_a_page(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["limelight", "look", SENTENCE, "--atlas", str(tmp_path / "atlas.json")])
    with pytest.raises(SystemExit):
        main()
    assert "--output" in capsys.readouterr().err
