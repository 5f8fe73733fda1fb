"""The configuration of a model: sizes, and recipes of its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..tensors.shapes import whole_number, wrong


@dataclass(frozen=True)
class Recipe:
    """A module not yet made: its class and its own settings. Equal recipes make equal modules.

    >>> from limelight.nn import RMSNorm
    >>> norm = recipe(RMSNorm, epsilon=1e-5)
    >>> norm
    RMSNorm(epsilon=1e-05)
    >>> norm(64)
    RMSNorm(64, epsilon=1e-05)
    """

    make: Callable[..., nn.Module]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, *sizes: Any, **more: Any) -> nn.Module:
        """Make the module, of these sizes."""
        return self.make(*sizes, **dict(self.settings), **more)

    def __getitem__(self, name: str) -> Any:
        """The setting of that name.

        >>> from limelight.nn import RMSNorm
        >>> recipe(RMSNorm, epsilon=1e-5)["epsilon"]
        1e-05
        """
        return dict(self.settings)[name]

    def setting(self, name: str, default: Any) -> Any:
        """The setting of that name, or ``default`` where there is none."""
        return dict(self.settings).get(name, default)

    def __repr__(self) -> str:
        return f"{getattr(self.make, '__name__', self.make)}({', '.join(f'{k}={v!r}' for k, v in self.settings)})"


def recipe(make: Callable[..., nn.Module], **settings: Any) -> Recipe:
    """A `Recipe` in the notation of a call."""
    return Recipe(make, tuple(settings.items()))


@dataclass(frozen=True)
class Config:
    """A Transformer as sizes and recipes of modules; no published name beyond that of its ``family``.

    Args:
        family: name of the family, a key of `limelight.models.families.FAMILIES`.
        vocabulary: number of tokens.
        width: features per token (``d_model``).
        layers: number of layers.
        limit: the most tokens a text may have; ``None`` for positions without an end.
        query_heads: ``Hq`` of every layer.
        key_value_heads: ``Hkv`` of every layer.
        head_width: ``D`` of every head.
        embedding: made with ``(vocabulary, width)``.
        attention: made with ``(width, query_heads=..., key_value_heads=..., head_width=..., name=...)``; or one such
            recipe a layer.
        feed_forward: made with ``(width)``.
        norm: made with ``(width)``.
        residual: made with ``(step, norm)``: `limelight.nn.PostNorm`, `PreNorm` or `Sandwich`.
        head: made with ``(vocabulary, width)``; ``None`` for a model without logits.
        shared: whether all layers have one set of parameters.
        final_norm: made with ``(width)``, the norm after the last layer; ``None`` for none.
        scores: made with ``(query_heads)``, makes a score rule that all layers share; ``None`` for none.
        cross: attention to an encoder in each layer, made like ``attention``; ``None`` for none.
        encoder: configuration of the encoder; ``None`` for models without one.
        one_table: whether encoder and decoder share one token embedding.
        last_residual: what the feed-forward step is made with in place of ``residual``; ``None`` for the same.
    """

    family: str
    vocabulary: int
    width: int
    layers: int
    limit: int | None
    query_heads: int
    key_value_heads: int
    head_width: int
    embedding: Recipe
    attention: Recipe | tuple[Recipe, ...]
    feed_forward: Recipe
    norm: Recipe
    residual: Recipe
    head: Recipe | None
    shared: bool = False
    final_norm: Recipe | None = None
    scores: Recipe | None = None
    cross: Recipe | None = None
    encoder: Config | None = None
    one_table: bool = False
    last_residual: Recipe | None = None

    @property
    def attentions(self) -> tuple[Recipe, ...]:
        """The attention of each layer."""
        return self.attention if isinstance(self.attention, tuple) else (self.attention,) * self.layers

    @property
    def cached_limit(self) -> int | None:
        """The most tokens of a text that a cache can hold.

        It is `limit`, or less where longer texts change the rotation of cached keys (`limelight.nn.DynamicNTK`).
        """
        rotations = [attention.setting("rotary", None) for attention in self.attentions]
        ends = [
            rotary.scaling.length_dependent_from
            for rotary in rotations
            if rotary is not None and rotary.scaling is not None
        ]
        return min((end for end in [self.limit, *ends] if end is not None), default=None)

    def __post_init__(self) -> None:
        for name in ("vocabulary", "width", "layers", "limit", "query_heads", "key_value_heads", "head_width"):
            if name != "limit" or self.limit is not None:
                whole_number(name, getattr(self, name), at_least=1)
        if self.query_heads % self.key_value_heads:
            raise wrong(
                "query_heads",
                "must be a multiple of `key_value_heads`",
                f"{self.query_heads} is not a multiple of {self.key_value_heads}",
                "Each key-value head serves the same number of query heads.",
            )
        if isinstance(self.attention, tuple) and len(self.attention) != self.layers:
            raise wrong(
                "attention",
                "must be one recipe, or one for each layer",
                f"there are {len(self.attention)} recipes and {self.layers} layers",
                "Layers that are alike take one recipe.",
            )
