"""Initialisation of parameters as published; a rule is called with a model, and draws from torch's generator.

>>> import torch
>>> from limelight.nn import FeedForward, Normal
>>> layer = FeedForward(8, inner=32, activation="gelu")
>>> _ = torch.manual_seed(0)
>>> Normal(layers=12)(layer)

Norms, sinks and all other parameters that a rule does not name keep their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .checks import checked
from .distance_bias import DistanceBias
from .feed_forward import FeedForward, GatedFeedForward
from .multihead import MultiHead
from .routing import Switch, TopK

Draw = Callable[[Tensor], object]


@checked
@dataclass(frozen=True)
class Normal:
    """Every matrix and every embedding from ``N(0, deviation ** 2)``, biases 0 (BERT, GPT-2, Llama).

    Args:
        deviation: of the distribution.
        layers: the depth ``N`` of GPT-2's rule, by which the projections that end a residual step (attention's output,
            the feed-forward's ``down``) are ``1 / sqrt(2 N)`` times as large, so that the sum does not grow with the
            depth (Radford et al. 2019); ``None`` leaves them like the others.
        truncation: values beyond this many deviations are drawn again (BERT as first published: 2); ``None`` for none.
    """

    deviation: float = 0.02
    layers: int | None = None
    truncation: float | None = None

    def __call__(self, model: nn.Module) -> None:
        """Initialise the parameters of ``model``."""
        ends = {id(weight) for weight in _ends(model)} if self.layers is not None else set()

        def draw(weight: Tensor) -> None:
            deviation = self.deviation / (2 * (self.layers or 0)) ** 0.5 if id(weight) in ends else self.deviation
            if self.truncation is None:
                nn.init.normal_(weight, 0.0, deviation)
            else:
                bound = self.truncation * deviation
                nn.init.trunc_normal_(weight, 0.0, deviation, -bound, bound)

        _begin(model, draw, draw)


@dataclass(frozen=True)
class Xavier:
    """Matrices uniform with the variance ``2 / (fan in + fan out)``, embeddings from ``N(0, 1 / width)``, biases 0.

    Glorot & Bengio 2010; as in the published code of the first Transformer.
    """

    def __call__(self, model: nn.Module) -> None:
        """Initialise the parameters of ``model``."""
        _begin(model, nn.init.xavier_uniform_, lambda table: nn.init.normal_(table, 0.0, table.shape[1] ** -0.5))


@checked
@dataclass(frozen=True)
class FanIn:
    """Matrices from ``N(0, 1 / fan in)``, embeddings from ``N(0, 1)``, biases 0: T5 (Raffel et al. 2020).

    Attention with ``scale=1`` has the scale in its query projections, which are ``1 / sqrt(D)`` times as large.

    Args:
        width: features per token (``d_model``); biases of distance have the variance ``1 / width``.
        factor: multiplies every deviation.
    """

    width: int
    factor: float = 1.0

    def __call__(self, model: nn.Module) -> None:
        """Initialise the parameters of ``model``."""
        scales = {
            id(layer.query.weight): layer.head_width**-0.5
            for layer in model.modules()
            if isinstance(layer, MultiHead) and layer.scale == 1.0
        }

        def matrix(weight: Tensor) -> None:
            nn.init.normal_(weight, 0.0, self.factor * scales.get(id(weight), 1.0) * weight[0].numel() ** -0.5)

        _begin(model, matrix, lambda table: nn.init.normal_(table, 0.0, self.factor))
        for layer in model.modules():
            if isinstance(layer, DistanceBias):
                nn.init.normal_(layer.weight, 0.0, self.factor * self.width**-0.5)


def _ends(model: nn.Module) -> Iterator[Tensor]:
    """The matrices that end a residual step."""
    for layer in model.modules():
        if isinstance(layer, MultiHead):
            yield layer.output.weight
        elif isinstance(layer, (FeedForward, GatedFeedForward)):
            yield layer.down.weight


@torch.no_grad()
def _begin(model: nn.Module, matrix: Draw, table: Draw) -> None:
    """Draw every matrix and every embedding, and set biases to 0."""
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            matrix(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, (TopK, Switch)):
            matrix(layer.weight)
        elif isinstance(layer, (nn.Embedding, DistanceBias)):
            table(layer.weight)
