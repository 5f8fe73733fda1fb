"""A page inside a notebook."""

from __future__ import annotations

import html
from collections.abc import Callable

LIMIT = 1_500_000  # bytes: a notebook keeps every output in its file
HEIGHT = 760  # pixels

# A document of its own, without an origin: it neither sees the notebook and its other outputs nor is seen by them.
_FRAME = (
    '<iframe srcdoc=\'{page}\' sandbox="allow-scripts allow-downloads" title="{title}" '
    'style="width: 100%; height: {height}px; border: 1px solid #8884; border-radius: 6px; resize: vertical">'
    "{title}: the page is not shown here, since the notebook is not trusted or scripts are removed from it. "
    "limelight.microscope.write_page(report, 'page.html') writes it to a file.</iframe>"
)


def frame(page: Callable[[int], str], title: str) -> str:
    """Return a page as an HTML frame for a notebook.

    The frame holds the whole page and needs neither the kernel nor a network, so it is there too when the notebook is
    opened again or exported to HTML. Where scripts are removed from outputs, as in a notebook that is not trusted,
    one line stands in its place.

    Args:
        page: makes the page, of at most as many bytes as it is given; it raises a `ValueError` where that is too few.
        title: the name of the frame for screen readers, and what stands in its place.
    """
    try:
        whole = page(LIMIT)
    except ValueError as error:
        return f"<p>{html.escape(f'{title}: {error}')}</p>"
    # In single quotes, since the page's data holds many double ones.
    inside = whole.replace("&", "&amp;").replace("'", "&#39;")
    return _FRAME.format(page=inside, title=html.escape(title), height=HEIGHT)
