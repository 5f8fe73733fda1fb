"""Write three pages with made-up numbers, to look at the view without a model: python web/mock.py FOLDER."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from limelight.microscope.page import write_page  # noqa: E402
from tests.microscope.mock import OTHER, SENTENCE, mock_report, paragraphs  # noqa: E402

PAGES = {
    "short": lambda: mock_report((SENTENCE, OTHER), 6, 12),
    "middle": lambda: mock_report((paragraphs(260),), 6, 12),
    "long": lambda: mock_report((paragraphs(7000),), 30, 9, causal=True),
}

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name in sys.argv[2:] or PAGES:
        print(name, f"{write_page(PAGES[name](), folder / f'{name}.html'):,} bytes")
