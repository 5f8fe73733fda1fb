"""What every head of a model does, measured over a corpus.

`heads` runs the model over the texts of its probes (`run`), every measure counts (`measures`), claims are tested
(`roles`), and what was found is an `Atlas`.
"""

from .against import AtlasComparison
from .atlas import Atlas, load_atlas
from .measuring import heads

__all__ = ["Atlas", "AtlasComparison", "heads", "load_atlas"]
