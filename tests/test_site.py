"""The site: its reference names every public module that pages use; where mkdocs is installed, it builds strictly."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parent.parent
MISSING = [
    name
    for name in ("mkdocs", "material", "mkdocstrings_handlers", "latex2mathml")
    if importlib.util.find_spec(name) is None
]


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


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install '.[site]')")
def test_it_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "site/api/limelight.html").read_text("utf-8")
    for name in ("attention", "Causal", "Packed", "Observe", "load"):
        assert f'id="limelight.{name}"' in reference
    assert "&gt;&gt;&gt; " in reference or 'class="gp"' in reference  # examples are blocks of code
    for page in (tmp_path / "site/api").glob("limelight.*.html"):  # each documents something beside the module
        assert page.read_text("utf-8").count(f'id="{page.stem}.') > 0, page
    assert '<math alttext="s_{ij} = ' in (tmp_path / "site/self-attention.html").read_text("utf-8")
    pages = {page: page.read_text("utf-8") for page in (tmp_path / "site").rglob("*.html")}
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
