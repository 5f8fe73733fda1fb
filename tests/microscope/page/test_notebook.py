"""A report in a notebook: frames of their own, in which the page draws itself and from which nothing gets out."""

import html.parser
from functools import partial

from support.made_up import OTHER, SENTENCE, mock_report, paragraphs
from support.made_up_sources import mock_picture, mock_speech, mock_translation

from limelight.microscope.page import make_page
from limelight.microscope.page.notebook import LIMIT, frame

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


def test_translations_sounds_and_pictures_have_frames_too(tmp_path, open_page):
    reports = [mock_translation(HOSTILE, SENTENCE), mock_speech(SENTENCE), mock_picture()]
    cells = "".join(f"<div>{report._repr_html_()}</div>" for report in reports)
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8><body>{cells}", encoding="utf-8")
    page = open_page(tmp_path / "notebook.html", ready="iframe")
    for number, title in enumerate(("Source and target", "Words over the sound", "The picture")):
        inside = page.locator("iframe").nth(number).content_frame
        inside.locator("html[data-ready=yes]").wait_for(state="attached")
        assert inside.get_by_role("heading", name=title, exact=True).count() == 1
    assert all(len(report._repr_html_().encode()) < 1.05 * LIMIT for report in reports)


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr("limelight.microscope.page.notebook.LIMIT", 1000)
    text = frame(partial(make_page, mock_report((HOSTILE,), 2, 2)), "a <b>")
    assert text.startswith("<p>a &lt;b&gt;: the page must fit")


def test_several_reports_draw_themselves_in_one_document(tmp_path, open_page):
    reports = [mock_report((text,), 3, 4) for text in (HOSTILE, SENTENCE, OTHER)]
    cells = "".join(f"<div>{report._repr_html_()}</div>" for report in reports)
    (tmp_path / "notebook.html").write_text(f"<!doctype html><meta charset=utf-8><body>{cells}", encoding="utf-8")
    page = open_page(tmp_path / "notebook.html", ready="iframe")
    frames = page.locator("iframe")
    assert frames.count() == len(reports)
    for number, report in enumerate(reports):
        inside = frames.nth(number).content_frame
        inside.locator("html[data-ready=yes]").wait_for(state="attached")
        assert inside.get_by_role("option").count() == report.readings[0].length
        assert inside.locator("main img").count() == 0
    chosen = "[role=option][aria-selected=true]"
    first, second = frames.nth(0).content_frame, frames.nth(1).content_frame
    before = second.locator(chosen).inner_text()
    first.get_by_role("option").last.click()
    assert first.locator(chosen).inner_text() == first.get_by_role("option").last.inner_text()
    assert second.locator(chosen).inner_text() == before
    look_out = "() => { try { return parent.document.title } catch (error) { return error.name } }"
    assert page.frames[1].evaluate(look_out) == "SecurityError"
