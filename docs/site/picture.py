"""Draw the pictures of the front page: the microscope's page on a real run, light and dark, in Debian's Chromium.

    pip install -e ".[test]" && python docs/site/picture.py

writes docs/pictures/microscope-light.png and microscope-dark.png.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from limelight.microscope import look, write_page

PICTURES = Path(__file__).parent.parent / "pictures"
TEXT = "The bank is near the river, and its flowers are covered with snow."
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def main() -> None:
    """Run the model, write its page into a temporary folder, and take both pictures of it."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder) / "page.html"
        write_page(look("minilm", TEXT, words=["bank"]), page_file)
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1160, "height": 582}, color_scheme=theme)
            page.goto(page_file.as_uri())
            page.wait_for_selector("html[data-ready=yes]", state="attached")
            picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=5, dither=Image.Dither.NONE)
            few.save(PICTURES / f"microscope-{theme}.png", optimize=True)
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
