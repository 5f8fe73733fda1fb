"""The page of a text in a real browser, where there is one: it draws itself, and a hostile text does nothing."""

import pytest
from support.made_up import SENTENCE, mock_report

from limelight.microscope import write_page

HOSTILE = "</script><img src=x onerror=document.title='gone'> <b>river</b> {{view}} \u202e\x1b[31m"


@pytest.mark.parametrize("text", [SENTENCE, HOSTILE])
def test_the_page_draws_itself(text, tmp_path, open_page):
    report = mock_report((text, SENTENCE), 3, 4)
    write_page(report, tmp_path / "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.get_by_role("option").count() == sum(reading.length for reading in report.readings)
    assert page.get_by_role("gridcell").count() == 12
    assert page.locator("main img").count() == 0
    assert not page.title().startswith("gone")
    assert page.locator(".band").count() == 1
