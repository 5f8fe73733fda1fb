"""Reports in a real JupyterLab and in what nbconvert exports: ``python tests/integrations/jupyter.py FOLDER``.

Writes a notebook of three reports into FOLDER, executes it, opens it in JupyterLab under Chromium and exports it as
HTML, and checks in both that every page draws itself; screenshots lie in FOLDER. It needs, in an environment with
Limelight: ``pip install jupyterlab nbclient nbconvert ipykernel playwright`` and ``apt-get install chromium``.
"""

import argparse
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import sync_playwright

CELLS = (
    "from limelight.microscope import look\nlook('minilm', 'The bank is near the river.')",
    "look('minilm', 'A bank.', compare='</script>\\'\"><img src=x onerror=alert(1)> bank &amp; &#39;')",
    "look('smollm2', 'The capital of France is Paris, and the capital of Germany is')",
)
TOKEN = "limelight"


def main() -> None:
    """Write, execute, open, export and check the notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the notebook and the screenshots go")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    nbformat.write(notebook, folder / "reports.ipynb")
    print(f"notebook: {(folder / 'reports.ipynb').stat().st_size:,} bytes")
    convert = [sys.executable, "-m", "jupyter", "nbconvert", "--to", "html", "reports.ipynb"]
    subprocess.run(convert, cwd=folder, check=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        faults = []
        for theme in ("light", "dark"):
            page = browser.new_page(viewport={"width": 1400, "height": 1000}, color_scheme=theme)
            page.on("pageerror", lambda error: faults.append(str(error)))
            page.goto((folder / "reports.html").as_uri())
            check(page, folder / f"exported-{theme}")
        serve(browser, folder, faults)
        browser.close()
    assert not faults, faults
    print("every report drew itself")


def serve(browser, folder: Path, faults: list) -> None:
    """Open the notebook in JupyterLab."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        f"--IdentityProvider.token={TOKEN}",
        f"--notebook-dir={folder}",
    ]
    server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], stderr=subprocess.DEVNULL)
    try:
        wait(f"http://127.0.0.1:{port}/api?token={TOKEN}")
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(f"http://127.0.0.1:{port}/lab/tree/reports.ipynb?token={TOKEN}&reset")
        page.wait_for_selector(".jp-OutputArea-output", state="attached", timeout=60_000)
        page.screenshot(path=folder / "lab-untrusted.png")
        stand_in = page.locator(".jp-OutputArea-output", has_text="the page is not shown here")
        print(f"not trusted: {stand_in.count()} of {len(CELLS)} reports are named by a line")
        subprocess.run([sys.executable, "-m", "jupyter", "trust", "reports.ipynb"], cwd=folder, check=True)
        page.close()
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.goto(f"http://127.0.0.1:{port}/lab/tree/reports.ipynb?token={TOKEN}&reset")
        check(page, folder / "lab")
    finally:
        server.terminate()
        server.wait(20)


def wait(address: str) -> None:
    """Wait until a server answers."""
    for _ in range(120):
        try:
            with urlopen(address):
                return
        except OSError:
            time.sleep(0.5)
    raise TimeoutError(address)


def check(page, picture: Path) -> None:
    """Check that every page in the notebook draws itself, and take a picture of each."""
    for number in range(len(CELLS)):
        page.wait_for_selector("iframe[title^=Report]", state="attached", timeout=60_000)
        frame = page.locator("iframe[title^=Report]").nth(number)
        frame.scroll_into_view_if_needed()
        frame.content_frame.locator("html[data-ready=yes]").wait_for(state="attached", timeout=60_000)
        assert frame.content_frame.locator("main img").count() == 0
        page.wait_for_timeout(500)
        page.screenshot(path=f"{picture}-{number + 1}.png")


if __name__ == "__main__":
    main()
