"""The committed bundle of the page is the one that web/src builds."""

import hashlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["view.js", "view.css"])
def test_bundle_is_built_from_the_sources(name):
    digest = hashlib.sha256()
    for source in sorted((ROOT / "web" / "src").iterdir()):
        digest.update(f"{source.name}\0{source.read_text('utf-8')}\0".encode())
    bundle = (ROOT / "src/limelight/microscope/page" / name).read_text("utf-8")
    assert f"built from web/src {digest.hexdigest()}" in bundle[:120], "run: cd web && npm ci && npm run build"
