"""A real browser for the tests of pages: Debian's Chromium, driven by Playwright and cut off from every network.

    def test_a_page(open_page, tmp_path):
        page = open_page(write(tmp_path / "page.html"), width=400, theme="dark")
        page.get_by_role("button", name="SVG").click()

`open_page` returns a `playwright.sync_api.Page`. The test fails at its end if the page wrote an error or a warning to
the console, raised an exception, or requested anything but itself: what a page may load is ``file:``, ``data:`` and
``blob:``, and the addresses that the test allows.
"""

import contextlib
import shutil

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
INSIDE = ("file:", "data:", "blob:", "about:")
FLAGS = ("--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost")


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window, for the tests of one module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install -e '.[test]'")
    if BROWSER is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """A function that opens a file or an address, each time in a new window, and waits until it has drawn itself.

    Its settings: ``width`` and ``height`` in pixels, ``theme`` "light" or "dark", ``ready`` (a CSS selector to wait
    for), ``allow`` (beginnings of addresses that may be requested), and those of Playwright's ``Browser.new_context``.
    """
    faults = []
    with contextlib.ExitStack() as windows:

        def open_page(
            where, *, width=1400, height=900, theme="light", ready="html[data-ready=yes]", allow=(), hash="", **settings
        ):
            viewport = {"width": width, "height": height}
            context = browser.new_context(viewport=viewport, color_scheme=theme, **settings)
            windows.callback(context.close)
            context.on("request", lambda request: _allowed(request.url, allow) or faults.append(request.url))
            context.on("weberror", lambda error: faults.append(str(error.error)))
            context.on("console", lambda line: line.type in ("error", "warning") and faults.append(line.text))
            page = context.new_page()
            page.goto((where if isinstance(where, str) else where.resolve().as_uri()) + hash)
            page.wait_for_selector(ready, state="attached")
            return page

        yield open_page
    assert not faults, f"errors on the console, or requests that leave the page: {faults}"


def _allowed(url, allow):
    return url.startswith((*INSIDE, *allow))
