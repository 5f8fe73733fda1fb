"""The page in a real browser, where there is one: it draws itself, and a hostile text does nothing."""

import re
import shutil
import subprocess

import pytest
from support.made_up import SENTENCE, mock_report

from limelight.microscope import write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


def drawn(page, tmp_path):
    """The elements of the page after its script has run, without any network."""
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --no-first-run --disable-sync"
    folder = f"--user-data-dir={tmp_path / 'profile'}"
    offline = "--host-resolver-rules=MAP * ~NOTFOUND"
    command = [BROWSER, *flags.split(), folder, offline, "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=100, check=True)
    return done.stdout.decode()


@pytest.mark.parametrize("text", [SENTENCE, "</script><img src=x onerror=document.title='gone'> <b>river</b> {{view}}"])
def test_the_page_draws_itself(text, tmp_path):
    report = mock_report((text, SENTENCE), 3, 4)
    write_page(report, tmp_path / "page.html")
    elements = drawn(tmp_path / "page.html", tmp_path)
    assert 'data-ready="yes"' in elements
    assert len(re.findall(r'role="option"', elements)) == sum(reading.length for reading in report.readings)
    assert len(re.findall(r'role="gridcell"', elements)) == 12
    assert "<img" not in elements
    assert "<title>gone" not in elements
    assert 'class="band"' in elements
