"""The page: one self-contained HTML file that opens without a network.

The view is built from ``web/`` into ``view.js`` and ``view.css`` beside this file; `write_page` inlines both
and the report's data into ``template.html``. Users need neither Node nor a network.
"""

from .write import ATLAS_LIMIT, PAGE_LIMIT, make_atlas, make_page, write_atlas, write_page

__all__ = ["ATLAS_LIMIT", "PAGE_LIMIT", "make_atlas", "make_page", "write_atlas", "write_page"]
