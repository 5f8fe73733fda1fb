"""Write pages with made-up numbers, to try the view without a model: python web/mock.py FOLDER [NAME ...].

``python web/mock.py --small`` writes what the view's own tests read.
"""

import dataclasses
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.atlas_made_up import MadeUpAtlas, mock_atlas  # noqa: E402
from support.made_up import OTHER, SENTENCE, mock_report, paragraphs  # noqa: E402
from support.made_up_sources import mock_picture, mock_speech, mock_translation  # noqa: E402

from limelight.microscope.page import ATLAS_LIMIT, write_atlas, write_page  # noqa: E402
from limelight.microscope.page.atlas_pack import pack_atlas  # noqa: E402
from limelight.microscope.page.pack import pack  # noqa: E402
from limelight.microscope.reading.comparison import compare_readings  # noqa: E402

PAGES = {
    "short": lambda: mock_report((SENTENCE, OTHER), 6, 12),
    "middle": lambda: mock_report((paragraphs(260),), 6, 12),
    "long": lambda: mock_report((paragraphs(7000),), 30, 9, causal=True),
    "translation": lambda: mock_translation(SENTENCE, OTHER, 6, 8),
    "speech": lambda: mock_speech(SENTENCE, 4.0, 4, 6),
    "picture": lambda: mock_picture(14, 14, 6, 8),
}
ATLASES = {
    "atlas": lambda: (MadeUpAtlas(6, 12),),
    "atlas-long": lambda: (MadeUpAtlas(30, 9),),
    "atlas-wide": lambda: (MadeUpAtlas(32, 32),),
    "atlas-pair": lambda: (MadeUpAtlas(6, 12), MadeUpAtlas(6, 12, seed=1, name="tuned")),
}


def small() -> None:
    """Write tiny pages beside the tables of their reports, and a tiny atlas beside its values."""
    report = mock_report((SENTENCE, "Understandingly, the bank of the river paid."), 2, 3)
    # Texts of one length have the same weights; one head changes for one word.
    compared = mock_report(("The dog saw a river and was old.", "The dog saw a river and was new."), 2, 3)
    first, second = compared.readings
    shares = second.shares.copy()
    shares[1, 0, 2] *= 0.3 / (1 - shares[1, 0, 2, 5])
    shares[1, 0, 2, 5] = 0.7
    second = dataclasses.replace(second, shares=shares)
    chosen = (tuple(range(8)), tuple(range(8)))
    compared = dataclasses.replace(
        compared, readings=(first, second), chosen=chosen, comparison=compare_readings(first, second)
    )
    both = {
        "page": json.loads(pack(report, 100_000)),
        "relations": report.tables["relations"],
        "compared": json.loads(pack(compared, 100_000)),
        "changes": compared.tables["changes"],
        "contrasts": compared.tables["contrasts"],
    }
    atlas, other = mock_atlas(2, 3), mock_atlas(2, 3, seed=1)
    given = {name: atlas[name] for name in ("measures", "roles", "examples", "similar")}
    pair = {"page": json.loads(pack_atlas(atlas, other, ATLAS_LIMIT)), "atlas": given}
    for name, values, indent in (("small", both, 1), ("small-atlas", pair, None)):
        target = ROOT / "web" / "tests" / f"{name}.json"
        target.write_text(json.dumps(values, ensure_ascii=False, indent=indent) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--small":
        small()
    else:
        for name in sys.argv[2:] or [*PAGES, *ATLASES]:
            path = Path(sys.argv[1]) / f"{name}.html"
            if name in PAGES:
                size = write_page(PAGES[name](), path)
            else:
                atlas, *other = ATLASES[name]()
                size = write_atlas(atlas, path, *other)
            print(name, f"{size:,} bytes")
