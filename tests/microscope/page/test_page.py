"""The page: small at any length, inert whatever the text says, whole or absent on the disk."""

import base64
import hashlib
import html.parser
import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.made_up import mock_reading, mock_report, paragraphs

from limelight.microscope.page import PAGE_LIMIT, make_page, write_page
from limelight.microscope.page.numbers import pack_numbers
from limelight.microscope.page.pack import pack
from limelight.microscope.page.pack_reading import _coarser
from limelight.microscope.page.pack_relations import rank_relations

HOSTILE = "</script><img src=x onerror=alert(1)><!-- {{view}} {{data}} &lt; \u2028 ]]> river 'bank' \"quote\" \\u003c"


class Elements(html.parser.HTMLParser):
    """Collects tags, attributes, and the content of script and style."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.inside, self.last = [], {}, ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.last = f"{tag} {dict(attrs).get('type', '')}".strip()

    def handle_endtag(self, tag):
        self.last = ""

    def handle_data(self, data):
        self.inside[self.last] = self.inside.get(self.last, "") + data


def unpack(packed):
    kind = {8: "<u1", 16: "<u2", 32: "<u4"}[packed["bits"]]
    codes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), kind).reshape(packed["shape"])
    part = codes / (2 ** packed["bits"] - 1)
    return packed["low"] + (packed["high"] - packed["low"]) * (part**2 if packed["root"] else part)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=50), st.sampled_from([8, 16]), st.booleans())
def test_packed_numbers_come_back_within_half_a_step(values, bits, root):
    values = np.array(values, np.float32)
    found = unpack(pack_numbers(values, bits, 0.0, 1.0, root))
    step = 1 / (2**bits - 1)
    # With root, codes are steps of the root: the value's own step is twice the root times as wide.
    allowed = step * (np.sqrt(values) + step) if root else step / 2
    assert (np.abs(found - values) <= allowed + 1e-7).all()


def test_joining_blocks_keeps_shares():
    random = np.random.default_rng(0)
    weights = random.random((1, 1, 13, 13)).astype(np.float32)
    weights /= weights.sum(-1, keepdims=True)
    coarse = _coarser(weights, 1, 13)
    for row in range(7):
        rows = weights[0, 0, 2 * row : 2 * row + 2]
        for column in range(7):
            expected = rows[:, 2 * column : 2 * column + 2].sum() / len(rows)
            assert coarse[0, 0, row, column] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_allclose(_coarser(coarse, 2, 13).sum(-1), 1.0, rtol=1e-5)


def test_a_hostile_text_stays_data():
    report = mock_report((HOSTILE, HOSTILE), 2, 2)
    page = make_page(report)
    elements = Elements(page)
    tags = [tag for tag, _ in elements.tags]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in elements.tags for name in attributes)
    data = elements.inside["script application/json"]
    assert not set("<>&\u2028") & set(data)
    assert json.loads(data)["readings"][0]["text"] == HOSTILE


def test_nothing_runs_but_the_view_and_nothing_is_loaded(made_up):
    page = make_page(made_up)
    elements = Elements(page)
    (policy,) = (a["content"] for tag, a in elements.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind, rule in (("script module", "script-src"), ("style", "style-src")):
        digest = base64.b64encode(hashlib.sha256(elements.inside[kind].encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert not any({"src", "href", "action", "style"} & set(attributes) for _, attributes in elements.tags)
    addresses = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[\w./]*", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # the name of SVG, not an address that is opened
    assert "innerHTML" not in page
    assert "eval(" not in page


@pytest.mark.parametrize(("words", "layers", "heads"), [(300, 6, 12), (7000, 30, 9)])
def test_pages_are_small(words, layers, heads):
    page = make_page(mock_report((paragraphs(words),), layers, heads, causal=heads == 9))
    assert len(page.encode()) <= PAGE_LIMIT < 3_000_000
    data = json.loads(Elements(page).inside["script application/json"])
    shares = unpack(data["readings"][0]["map"]["shares"])
    np.testing.assert_allclose(shares.sum(-1), 1.0, atol=0.15)  # 8 bits of 64 blocks


def test_exact_weights_of_a_wide_model_become_blocks():
    """64 tokens are kept exactly, but 40 x 40 heads of them do not fit in a page."""
    report = mock_report((paragraphs(52),), 40, 40)
    assert report.readings[0].exact
    page = make_page(report)
    assert len(page.encode()) <= PAGE_LIMIT
    reading = json.loads(Elements(page).inside["script application/json"])["readings"][0]
    assert reading["map"]["block"] > 1
    assert reading["relations"]["each"] > 0


def test_relations_are_ranked_once_for_every_size():
    """By their weight, halved for every stronger relation to the same key."""
    reading = mock_reading(paragraphs(600), 3, 4, causal=True, exact_pairs=0)
    ranked = rank_relations(reading, 32)
    for most in (32, 8, 1):
        packed = ranked.pack(most)
        keys, heads, weights = (unpack(packed[name]) for name in ("keys", "heads", "weights"))
        assert (np.diff(weights, axis=1) <= 0).all()
        for query in (5, 300, reading.length - 1):
            all_keys, all_weights = (
                part[:, :, query].reshape(12, -1) for part in (reading.top_keys, reading.top_weights)
            )
            kept = [
                (float(weight), int(key), head)
                for head in range(12)
                for key, weight in zip(all_keys[head], all_weights[head], strict=True)
                if weight > 0 and key not in reading.apart
            ]
            kept.sort(reverse=True)
            earlier = [sum(key == other for _, other, _ in kept[:number]) for number, (_, key, _) in enumerate(kept)]
            worth = [weight * 0.5**count for (weight, _, _), count in zip(kept, earlier, strict=True)]
            expected = [row for _, row in sorted(zip(worth, kept, strict=True), reverse=True)[:most]]
            found = zip(weights[query], keys[query], heads[query], strict=True)
            found = {(int(key), int(head)): weight for weight, key, head in found if weight > 0}
            assert set(found) == {(key, head) for _, key, head in expected}
            assert all(abs(found[key, head] - weight) < 1e-4 for weight, key, head in expected)


def test_a_long_text_has_a_larger_page(made_up, monkeypatch):
    limits = []
    monkeypatch.setattr(
        "limelight.microscope.page.write.pack", lambda report, limit, beside: limits.append(limit) or "{}"
    )
    make_page(made_up)
    monkeypatch.setattr("limelight.microscope.page.write.LONG", 10)
    make_page(made_up)
    make_page(made_up, 500_000)
    assert 7_800_000 < limits[1] < 8_000_000
    assert 2_800_000 < limits[0] < PAGE_LIMIT
    assert limits[2] < 500_000


def test_detail_is_given_up_step_by_step():
    report = mock_report((paragraphs(200),), 6, 12)
    sizes = [len(pack(report, limit).encode()) for limit in (3_000_000, 300_000, 120_000)]
    assert sizes[0] > 300_000 >= sizes[1] > 120_000 >= sizes[2]
    with pytest.raises(ValueError, match="tokens needs"):
        pack(report, 1000)


def test_the_file_is_whole_or_absent(made_up, tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    assert write_page(made_up, target) == target.stat().st_size
    before = target.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_page(made_up, target)
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
