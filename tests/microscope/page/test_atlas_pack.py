"""The data of an atlas's page: numbers come back, unknown ones as unknown, and it fits for any number of heads."""

import base64
import json
import math
import re
import zlib

import numpy as np
import pytest
from support.atlas_made_up import MadeUpAtlas, mock_atlas

from limelight.microscope import Atlas
from limelight.microscope.page import ATLAS_LIMIT, make_atlas, write_atlas
from limelight.microscope.page.atlas_pack import pack_atlas

KINDS = {8: "<u1", 16: "<u2", 32: "<u4"}


def unpack(packed):
    codes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), KINDS[packed["bits"]])
    codes = codes.reshape(packed["shape"])
    most = 2 ** packed["bits"] - 1
    part = codes / most
    values = packed["low"] + (packed["high"] - packed["low"]) * (part**2 if packed["root"] else part)
    return np.where(codes == most, np.nan, values) if packed.get("missing") else values


def packed(atlas, other=None, limit=ATLAS_LIMIT):
    return json.loads(pack_atlas(atlas, other, limit))


def test_numbers_come_back():
    atlas = mock_atlas(4, 6)
    page = packed(atlas)
    measures = [measure for measure in atlas["measures"] if measure["measure"] != "contextuality"]
    names = [" ".join(filter(None, (measure["measure"], measure["detail"]))) for measure in measures]
    assert [measure["id"] for measure in page["measures"]] == names
    for given, found in zip(measures, page["measures"], strict=True):
        pairs = [(given["baseline"], found["baseline"])]
        pairs += [
            (given[part][name], found[part][name])
            for part in ("chosen", "scored", "total")
            for name in ("score", "low")
        ]
        for expected, numbers in pairs:
            expected = np.array(expected)
            step = np.ptp(expected) / 65534
            np.testing.assert_allclose(unpack(numbers), expected, rtol=0, atol=step / 2 + 1e-9)
        assert found["scored"]["n"] == given["scored"]["n"]
    for part in ("share", "even"):
        np.testing.assert_allclose(unpack(page["classes"][part]), atlas["classes"][part], rtol=0, atol=1e-5)
    weights = np.frombuffer(base64.b64decode(atlas["picture"]["weights"]), np.uint8)
    np.testing.assert_allclose(unpack(page["picture"]["weights"]).ravel(), weights / 255, atol=1e-9)


def test_empty_bins_at_the_ends_are_left_out():
    atlas = mock_atlas(2, 3)
    page = packed(atlas)
    assert page["profile"]["bins"][0] == [-64, -49]
    assert page["profile"]["bins"][-1] == [0, 0]
    np.testing.assert_allclose(
        unpack(page["profile"]["share"]), np.array(atlas["profile"]["share"])[..., 1:-1], atol=1e-5
    )


def test_an_atlas_is_packed_as_its_plain_values_are():
    """What is made up here has the format of an atlas."""
    values = mock_atlas(2, 3)
    assert packed(Atlas.from_dict(values).to_dict()) == packed(values)


def test_unknown_numbers_stay_unknown():
    atlas = mock_atlas(2, 3)
    score = atlas["measures"][0]["total"]["score"]
    score[1][2] = None
    score[0][0] = math.inf
    found = unpack(packed(atlas)["measures"][0]["total"]["score"])
    assert np.isnan(found[[1, 0], [2, 0]]).all()
    assert np.isfinite(found).sum() == 4
    atlas["measures"][0]["total"]["score"] = [[None] * 3] * 2
    assert np.isnan(unpack(packed(atlas)["measures"][0]["total"]["score"])).all()


def test_one_number_serves_every_head():
    atlas = mock_atlas(2, 3)
    atlas["measures"][0]["baseline"] = 0.25
    np.testing.assert_allclose(unpack(packed(atlas)["measures"][0]["baseline"]), np.full((2, 3), 0.25), atol=1e-9)


def test_measures_of_layers_stand_apart_from_those_of_heads():
    page = packed(mock_atlas(4, 6))
    (measure,) = page["layers"]
    assert measure["label"] == "contextuality"
    np.testing.assert_allclose(measure["score"], np.linspace(1.0, 0.4, 5))
    assert len(measure["baseline"]) == 5


def test_roles_name_their_head_and_their_measure():
    atlas = mock_atlas(6, 12)
    page = packed(atlas)
    roles = [role for role in atlas["roles"] if role["role"] != "sink"]
    sinks = [role["layer"] * 12 + role["head"] for role in atlas["roles"] if role["role"] == "sink"]
    assert page["sink"]["heads"] == sinks
    assert page["measures"][page["sink"]["measure"]]["id"] == "sink"
    assert min(len(roles), len(sinks)) > 0
    for given, found in zip(roles, page["roles"], strict=True):
        assert found["head"] == given["layer"] * 12 + given["head"]
        assert page["measures"][found["measure"]]["claim"]["role"] == found["role"] == given["role"]


def test_examples_come_back_and_shared_windows_are_kept_once():
    atlas = mock_atlas(3, 4)
    repeated = [dict(example, weight=0.5) for example in atlas["examples"][:2]]
    atlas["examples"][-2:] = [dict(example, layer=2, head=3) for example in repeated]
    found = packed(atlas)["examples"]
    tokens, starts, window = (unpack(found[name]).astype(int) for name in ("tokens", "starts", "window"))
    assert len(set(window)) <= len(window) - 2
    texts = [[found["vocabulary"][token] for token in tokens[starts[w] : starts[w + 1]]] for w in window]
    for at, example in enumerate(atlas["examples"]):
        assert texts[at] == example["tokens"]
        for name in ("text", "query", "key"):
            assert unpack(found[name])[at] == example[name]
        assert unpack(found["weight"])[at] == pytest.approx(example["weight"], abs=1e-5)


def test_similar_heads_come_back():
    atlas = mock_atlas(3, 4)
    found = packed(atlas)["similar"]
    for at, row in enumerate(atlas["similar"]):
        assert unpack(found["head"])[at] == row["layer"] * 4 + row["head"]
        assert unpack(found["other"])[at] == row["other_layer"] * 4 + row["other_head"]
        assert unpack(found["cosine"])[at] == pytest.approx(row["cosine"], abs=1e-4)


def test_sources_of_thresholds_stand_with_the_measures_alone():
    page = packed(mock_atlas(3, 4))
    assert page["notes"] == ["A role is claimed for a head on the texts of even number."]
    assert page["measures"][0]["claim"]["source"] == "Clark et al. 2019, section 3"


def test_an_unknown_measure_keeps_its_own_name():
    atlas = mock_atlas(2, 3)
    atlas["measures"][0].update(measure="syntax", detail="obj, head to dependent")
    atlas["roles"] = []
    found = packed(atlas)["measures"][0]
    assert (found["label"], found["group"]) == ("obj, head to dependent", "syntax")


@pytest.mark.parametrize(("layers", "heads"), [(30, 9), (32, 32)])
def test_pages_are_small(layers, heads):
    page = make_atlas(MadeUpAtlas(layers, heads), MadeUpAtlas(layers, heads, seed=1))
    assert len(page.encode()) < 5_000_000


def test_examples_are_left_out_until_the_page_fits():
    atlas = mock_atlas(6, 12)
    whole = len(pack_atlas(atlas, None, ATLAS_LIMIT).encode())
    counts = []
    for limit in (whole, whole - 1, whole * 3 // 4):
        page = packed(atlas, None, limit)
        counts.append((page["picture"] is not None, page["examples"]["head"]["shape"][0] if page["examples"] else 0))
    assert counts[0] == (True, 8 * 72)
    assert counts[0] > counts[1] > counts[2]
    with pytest.raises(ValueError, match=r"6 x 12 heads must fit in 1,000 bytes, but the numbers alone need \d+,\d+"):
        pack_atlas(atlas, None, 1000)


def test_another_atlas_stands_beside():
    here, there = mock_atlas(3, 4), mock_atlas(3, 4, seed=1)
    there["measures"] = there["measures"][1:]
    page = packed(here, there)
    assert page["other"]["name"] == "made-up"
    assert page["measures"][0]["other"] is None
    np.testing.assert_allclose(
        unpack(page["measures"][1]["other"]["score"]), there["measures"][0]["total"]["score"], atol=1e-5
    )
    assert {role["other"] for role in page["roles"]} == {False, True}
    with pytest.raises(ValueError, match="the atlas has 3 x 4, other 4 x 4"):
        pack_atlas(here, mock_atlas(4, 4), ATLAS_LIMIT)


def test_a_page_runs_nothing_but_the_view():
    hostile = "</script><img src=x onerror=alert(1)> \ud800 \x1b[2J \u202e {{view}}"
    page = make_atlas(
        MadeUpAtlas(2, 3, text=f"The {hostile} end of a text that is long enough to be cut.", name=hostile)
    )
    assert page.count("<script") == 2
    assert "<img" not in page
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "\x1b" not in page
    assert "\u202e" not in page
    page.encode()


def test_the_file_is_whole_or_absent(tmp_path, monkeypatch):
    target = tmp_path / "atlas.html"
    assert write_atlas(MadeUpAtlas(2, 3), target) == target.stat().st_size
    before = target.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_atlas(MadeUpAtlas(2, 4), target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["atlas.html"]
