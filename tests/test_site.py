"""The site: its reference names every public module that pages use; where mkdocs is installed, it builds strictly."""

import contextlib
import functools
import http.server
import importlib.util
import re
import subprocess
import sys
import threading
import types
from pathlib import Path
from urllib.parse import unquote

import pytest
from support.browser import browser, open_page  # noqa: F401 (fixtures)

ROOT = Path(__file__).parent.parent
MISSING = [
    name
    for name in ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml")
    if importlib.util.find_spec(name) is None
]


# What newcomers type into the search, and the heading that it must find first.
QUESTIONS = {
    "padding mask": "How do I pass a padding mask?",
    "what is Dv": "What is Dv?",
    "which backends": "Which backends are there?",
    "see weights of my Hugging Face model": "How do I see the attention weights of my Hugging Face model?",
    "sliding window": "How do I pass a sliding window?",
    "bfloat16 on CPU": "Does bfloat16 work on a CPU?",
    "what does sink mean": "What does sink mean?",
    "how to serve": "How do I serve a model?",
    "resume training": "How do I resume training?",
    "how do I cite": "How do I cite it?",
}


def modules():
    """The modules of `hooks.MODULES`, without mkdocs."""
    listed = re.search(r"^MODULES = \{.*?^\}", (ROOT / "docs/site/hooks.py").read_text("utf-8"), re.S | re.M)
    assert listed is not None
    return set(re.findall(r'"(limelight[\w.]*)"', listed[0]))


def test_every_module_of_the_reference_exists():
    for name in modules():
        path = ROOT / "src" / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_modules_that_the_readme_imports_from_have_a_page():
    used = re.findall(r"^from (limelight[\w.]*) import", (ROOT / "README.md").read_text("utf-8"), re.M)
    assert set(used) <= modules()


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert re.search(rf"^ +- {re.escape(page.name)}$", navigation, re.M), page.name


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)} (pip install '.[site]')")
    folder = tmp_path_factory.mktemp("build") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # without a warning
    return folder


def test_pages_are_complete(site):
    reference = (site / "api/limelight.html").read_text("utf-8")
    for name in ("attention", "Causal", "Packed", "Observe", "load"):
        assert f'id="limelight.{name}"' in reference
    assert "&gt;&gt;&gt; " in reference or 'class="gp"' in reference  # examples are blocks of code
    for page in (site / "api").glob("limelight.*.html"):  # each documents something beside the module
        assert page.read_text("utf-8").count(f'id="{page.stem}.') > 0, page
    assert '<math alttext="s_{ij} = ' in (site / "self-attention.html").read_text("utf-8")
    pages = {page: page.read_text("utf-8") for page in site.rglob("*.html")}
    headings = {page: set(re.findall(r'id="([^"]+)"', text)) for page, text in pages.items()}
    for page, text in pages.items():
        assert 'class="arithmatex"' not in text, page  # every formula has become MathML
        assert not re.search(r'(?:src|href)="https?://[^"]*\.(?:js|css|woff2?)"', text), page
        if page.name != "404.html":  # whose links are those of the host's root
            assert missing(page, text, headings) == set(), page


def missing(page, text, headings):
    """The links of a page to files or headings that are not there; mkdocs looks at those of Markdown alone."""
    gone = set()
    for link in set(re.findall(r'(?:src|href)="(?!https?:|data:|mailto:)([^"]+)"', text)):
        file, _, part = link.partition("#")
        target = (page.parent / unquote(file)).resolve() if file else page
        if not target.exists() or (part and target in headings and unquote(part) not in headings[target]):
            gone.add(link)
    return gone


def test_a_formula_that_cannot_be_converted_ends_the_build():
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)} (pip install '.[site]')")
    spec = importlib.util.spec_from_file_location("mathematics", ROOT / "docs/site/mathematics.py")
    mathematics = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mathematics)
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="a.md"))
    made = mathematics.on_page_content(r'<p><span class="arithmatex">\(p &lt; \mathrm{lse}_i\)</span></p>', page)
    assert '<math alttext="p &lt; \\mathrm{lse}_i"' in made
    assert "<mi>lse</mi>" in made
    for wrong in (r"\nonsense x", "x^", "a &amp; b"):
        with pytest.raises(mathematics.PluginError, match=r"a\.md: the formula"):
            mathematics.on_page_content(rf'<div class="arithmatex">\[{wrong}\]</div>', page)


class Silent(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this machine; yields its address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def test_a_search_finds_what_newcomers_look_for(site, open_page):  # noqa: F811
    with served(site) as address:
        page = open_page(f"{address}index.html", ready="[data-md-component=search-query]", allow=(address,))
        search = page.get_by_role("textbox", name="Search")
        for question, heading in QUESTIONS.items():
            search.fill("")
            search.press_sequentially(question)
            first = page.locator(".md-search-result__item").first
            first.get_by_role("heading", name=heading, exact=True).wait_for(timeout=10_000)
