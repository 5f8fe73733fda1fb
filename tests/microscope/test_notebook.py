"""A report in a notebook: frames of their own, in which the page draws itself and from which nothing gets out."""

import html.parser
import re
from functools import partial

import pytest
from support.made_up import OTHER, SENTENCE, mock_report, paragraphs

from limelight.microscope.page import make_page
from limelight.microscope.page.notebook import LIMIT, frame

from .test_browser import BROWSER, drawn

HOSTILE = "</iframe></script>'\"><img src=x onerror=alert(1)> & &amp; &#39; {page} river"


class Frames(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.frames = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "iframe":
            self.frames.append(dict(attrs))


def test_the_frame_holds_the_page_and_no_more_rights_than_it_needs():
    report = mock_report((HOSTILE, SENTENCE), 2, 2)
    found = Frames(report._repr_html_())
    assert found.tags == ["iframe"]
    (attributes,) = found.frames
    assert attributes["srcdoc"] == make_page(report, LIMIT)  # byte for byte, so that the policy's hashes hold
    assert attributes["sandbox"].split() == ["allow-scripts", "allow-downloads"]
    assert attributes["title"] == repr(report)


def test_the_frame_is_small_at_any_length():
    report = mock_report((paragraphs(3000),), 30, 9, causal=True)
    assert len(report._repr_html_().encode()) < 1.05 * LIMIT


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr("limelight.microscope.page.notebook.LIMIT", 1000)
    text = frame(partial(make_page, mock_report((HOSTILE,), 2, 2)), "a <b>")
    assert text.startswith("<p>a &lt;b&gt;: the page must fit")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")
def test_several_reports_draw_themselves_in_one_document(tmp_path):
    reports = [mock_report((text,), 3, 4) for text in (HOSTILE, SENTENCE, OTHER)]
    # The sandboxed frames have no origin, so this document cannot look into them; without it, in a test, it can.
    frames = "".join(report._repr_html_() for report in reports).replace("allow-scripts", "allow-scripts allow-same-origin")
    (tmp_path / "notebook.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{frames}<script>addEventListener('load', () => setTimeout(() => {{"
        "for (const frame of document.querySelectorAll('iframe')) document.body.append(Object.assign(document."
        "createElement('pre'), {textContent: frame.contentDocument.documentElement.outerHTML})) }, 3000))</script>",
        encoding="utf-8",
    )
    elements = drawn(tmp_path / "notebook.html", tmp_path)
    found = [html.unescape(text) for text in re.findall("<pre>(.*?)</pre>", elements, re.DOTALL)]
    assert [text.count('role="option"') for text in found] == [report.readings[0].length for report in reports]
    assert all('data-ready="yes"' in text and "<img" not in text for text in found)
