"""The weights that a subject of the microscope observes, beside those that its model returns."""

import torch

import limelight
from limelight import Observe


def drawn(rows, length, seed=0):
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def observed(subject, ids, **how):
    """The weights of all queries by the names of layers."""
    seen = {}

    class Rows(limelight.Seen):
        def request(self, name, query, key):
            return Observe(rows=tuple(range(query.shape[2])))

        def add(self, name, observations):
            assert name not in seen
            seen[name] = observations.rows

    with limelight.watching(Rows(Observe())):
        subject.run(ids, **how)
    return seen


def eager(model, inputs, name="attentions"):
    with torch.no_grad():
        return getattr(model(**inputs, output_attentions=True), name)


def largest_error(seen, names, theirs, real=None):
    error = 0.0
    assert len(names) == len([weights for weights in theirs if weights is not None])
    for name, weights in zip(names, (weights for weights in theirs if weights is not None), strict=True):
        difference = (seen[name] - weights).abs()
        if real is not None:  # rows of padding see nothing, and average over everything there
            difference = difference * real[:, None, :, None]
        error = max(error, float(difference.max()))
    return error
