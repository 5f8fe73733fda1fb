"""The microscope: what a model looks at in a text, as data first and pictures second; and how it is computed.

>>> from limelight.microscope import look, write_page
>>> report = look("minilm", "The bank is near the river.", words=["bank"])
>>> report.tables["relations"][0]["other"]
'river'
>>> size = write_page(report, "bank.html")  # doctest: +SKIP

`look` (with `across` for encoder-decoders) runs a model of `subjects` and makes a `Report`. What a report holds has a
package each: `reading` (the self-attention over a text, picture or sound), `sources` (cross-attention), `writing`
(what a decoder writes). `page` and `terminal` show it. `heads` measures all heads over many texts; `rollout` follows
one word through all layers.
"""

from ..models.fast_paths import fast_paths
from .heads import Atlas, AtlasComparison, load_atlas
from .look import look
from .page import make_atlas, make_page, write_atlas, write_page
from .report import Report
from .rollout import Rollout, rollout

__all__ = [
    "Atlas",
    "AtlasComparison",
    "Report",
    "Rollout",
    "fast_paths",
    "load_atlas",
    "look",
    "make_atlas",
    "make_page",
    "rollout",
    "write_atlas",
    "write_page",
]
