"""The committed bundles of the pages are those that web/src builds."""

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["view.js", "view.css", "atlas.js", "atlas.css"])
def test_bundle_is_built_from_the_sources(name):
    root = ROOT / "web" / "src"
    sources = {source.relative_to(root).as_posix(): source for source in root.rglob("*") if source.is_file()}
    digest = hashlib.sha256()
    for relative in sorted(sources):
        digest.update(f"{relative}\0{sources[relative].read_text('utf-8')}\0".encode())
    bundle = (ROOT / "src/limelight/microscope/page" / name).read_text("utf-8")
    assert f"built from web/src {digest.hexdigest()}" in bundle[:120], "run: cd web && npm ci && npm run build"
