"""Write pages with made-up numbers, to try the view without a model: python web/mock.py FOLDER [NAME ...].

``python web/mock.py --small`` writes what the view's own tests read.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from support.made_up import OTHER, SENTENCE, mock_report, paragraphs  # noqa: E402

from limelight.microscope.page import write_page  # noqa: E402
from limelight.microscope.page.pack import pack  # noqa: E402

PAGES = {
    "short": lambda: mock_report((SENTENCE, OTHER), 6, 12),
    "middle": lambda: mock_report((paragraphs(260),), 6, 12),
    "long": lambda: mock_report((paragraphs(7000),), 30, 9, causal=True),
}


def small() -> None:
    """Write a tiny page beside the report it was made from."""
    report = mock_report((SENTENCE, "Understandingly, the bank paid."), 2, 3)
    both = {"page": json.loads(pack(report, 100_000)), "relations": report.tables["relations"]}
    target = ROOT / "web" / "tests" / "small.json"
    target.write_text(json.dumps(both, ensure_ascii=False, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--small":
        small()
    else:
        for name in sys.argv[2:] or PAGES:
            print(name, f"{write_page(PAGES[name](), Path(sys.argv[1]) / f'{name}.html'):,} bytes")
