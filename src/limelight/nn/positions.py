"""Rotary positions: queries and keys are rotated by angles that grow with their positions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import fused
from ..tensors.shapes import wrong
from .checks import checked


class Pairing(Protocol):
    """Which two features of a head are rotated as a pair."""

    def split(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the second feature of every pair, ``(..., D / 2)`` each, of heads ``(..., D)``."""

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """Heads ``(..., D)`` of the first and the second feature of every pair: the inverse of `split`."""


@dataclass(frozen=True)
class SplitHalves(Pairing):
    """Feature ``i`` with feature ``D / 2 + i`` (GPT-NeoX, Llama in Transformers)."""

    def split(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        first, second = heads.chunk(2, dim=-1)
        return first, second

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat((first, second), dim=-1)


@dataclass(frozen=True)
class InterleavedPairs(Pairing):
    """Feature ``2 i`` with feature ``2 i + 1`` (RoFormer, GPT-J)."""

    def split(self, heads: Tensor) -> tuple[Tensor, Tensor]:
        return heads[..., 0::2], heads[..., 1::2]

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.stack((first, second), dim=-1).flatten(-2)


class Rotation(NamedTuple):
    """The factors of every feature of a head and of its partner in the pair; each ``(B | 1, 1, L, rotated)``.

    Of a pair ``(a, b)`` and its angle: ``(a cos - b sin, b cos + a sin)``.
    """

    own: Tensor
    partners: Tensor
    pairing: Pairing = SplitHalves()

    @classmethod
    def by(cls, cosine: Tensor, sine: Tensor, pairing: Pairing) -> Rotation:
        """The rotation by angles with these cosines and sines, ``(B | 1, 1, L, rotated / 2)``."""
        return cls(pairing.join(cosine, cosine), pairing.join(-sine, sine), pairing)

    @property
    def cosine(self) -> Tensor:
        """The cosine of the angle of every pair, ``(B | 1, 1, L, rotated / 2)``."""
        return self.pairing.split(self.own)[0]

    @property
    def sine(self) -> Tensor:
        """The sine of the angle of every pair, ``(B | 1, 1, L, rotated / 2)``."""
        return self.pairing.split(self.partners)[1]

    def rotate(self, heads: Tensor) -> Tensor:
        """Rotate queries or keys ``(B, H, L, D)``; features beyond the rotated ones stay as they are."""
        if type(self.pairing) is SplitHalves:
            return fused.rotate_halves(heads, self.own, self.partners)
        rotated = self.own.shape[-1]
        rest = heads[..., rotated:]
        heads = heads[..., :rotated] if rest.shape[-1] else heads
        a, b = self.pairing.split(heads)
        heads = torch.addcmul(heads * self.own, self.pairing.join(b, a), self.partners)
        return torch.cat((heads, rest), dim=-1) if rest.shape[-1] else heads


class RopeScaling(Protocol):
    """Changes the frequencies of rotary positions for texts longer than those of the training."""

    @property
    def attention_factor(self) -> float:
        """Factor of cosine and sine."""

    @property
    def length_dependent_from(self) -> int | None:
        """The length of a text from which on frequencies depend on it; ``None`` where they never do."""

    def frequencies(self, plain: Tensor, lengths: Tensor) -> Tensor:
        """Scaled frequencies, which broadcast to ``(B | 1, D / 2)``, in radians per position.

        Args:
            plain: ``(D / 2,)``, the frequencies without scaling.
            lengths: ``(B | 1, 1)``, the lengths of the texts.
        """


@checked
@dataclass(frozen=True)
class LinearScaling(RopeScaling):
    """Position interpolation: every angle divided by ``factor`` (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float
    attention_factor: ClassVar[float] = 1.0
    length_dependent_from: ClassVar[None] = None

    def frequencies(self, plain: Tensor, lengths: Tensor) -> Tensor:
        return plain / self.factor


@checked
@dataclass(frozen=True)
class Llama3Scaling(RopeScaling):
    """Llama 3.1's scaling: low frequencies are divided by ``factor``, high ones kept, those between interpolated.

    Args:
        factor: how much longer texts may be than in the training.
        original_max_positions: the maximum length of a text in the training.
        low, high: a wave of more than ``original_max_positions / low`` positions is long, of less than
            ``original_max_positions / high`` short.
    """

    factor: float
    original_max_positions: int
    low: float = 1.0
    high: float = 4.0
    attention_factor: ClassVar[float] = 1.0
    length_dependent_from: ClassVar[None] = None

    def frequencies(self, plain: Tensor, lengths: Tensor) -> Tensor:
        waves = self.original_max_positions * plain / (2 * math.pi)  # how many waves fit into the trained length
        keep = ((waves - self.low) / (self.high - self.low)).clamp(0, 1)
        return keep * plain + (1 - keep) * plain / self.factor


@checked
@dataclass(frozen=True)
class DynamicNTK(RopeScaling):
    """Dynamic NTK scaling: a base that grows with the length of the text.

    ``theta' = theta * (factor * length / original_max_positions - factor + 1) ** (D / (D - 2))``

    Texts up to ``original_max_positions`` are read as in the training; beyond, the lowest frequency changes most, the
    highest not at all (bloc97 and emozilla 2023; Peng et al. 2023, arXiv:2309.00071, appendix). The angles of *all*
    tokens change when the text grows, so beyond that length no keys of a shorter text can be cached.

    Args:
        factor: of the published rule.
        original_max_positions: the maximum length of a text in the training.
    """

    factor: float
    original_max_positions: int
    attention_factor: ClassVar[float] = 1.0

    @property
    def length_dependent_from(self) -> int:
        return self.original_max_positions

    def frequencies(self, plain: Tensor, lengths: Tensor) -> Tensor:
        growth = (
            self.factor * lengths.double().clamp(min=self.original_max_positions) / self.original_max_positions
            - self.factor
            + 1
        )
        pairs = len(plain)
        # theta' ** (-2 k / D), written in the pair k of D / 2
        number = torch.arange(pairs, dtype=plain.dtype, device=plain.device)
        return plain * growth ** (-number / max(pairs - 1, 1))


@checked
@dataclass(frozen=True)
class YaRN(RopeScaling):
    """YaRN: high frequencies are kept, low ones divided by ``factor``, those between interpolated (arXiv:2309.00071).

    Pair ``k`` makes ``original_max_positions * theta ** (-2 k / D) / 2 pi`` rotations in a text of the
    training. The interpolation is linear in ``k``, from ``fast`` rotations to ``slow`` ones.

    Args:
        factor: how much longer texts may be than in the training.
        original_max_positions: the maximum length of a text in the training.
        fast, slow: rotations at which the interpolation begins and ends (``beta_fast``, ``beta_slow``).
        attention_factor: factor of cosine and sine; the published default is ``0.1 ln(factor) + 1``.
        whole_pairs: whether the ends of the interpolation are rounded outward to whole pairs (``truncate``).
    """

    factor: float
    original_max_positions: int
    fast: float = 32.0
    slow: float = 1.0
    attention_factor: float = math.nan
    whole_pairs: bool = True
    length_dependent_from: ClassVar[None] = None

    def __post_init__(self) -> None:
        if math.isnan(self.attention_factor):
            object.__setattr__(self, "attention_factor", 0.1 * math.log(self.factor) + 1 if self.factor > 1 else 1.0)

    def frequencies(self, plain: Tensor, lengths: Tensor) -> Tensor:
        pairs = len(plain)
        if pairs < 2:
            return plain
        step = -plain[1].log()  # one pair further, a wave is exp(step) times as long
        first, last = (
            math.log(self.original_max_positions / (turns * 2 * math.pi)) / step for turns in (self.fast, self.slow)
        )
        if self.whole_pairs:
            first, last = first.floor(), last.ceil()
        first, last = first.clamp(min=0), last.clamp(max=2 * pairs - 1)
        ramp = torch.arange(pairs, dtype=plain.dtype, device=plain.device) - first
        slowed = (ramp / (last - first).clamp(min=1e-3)).clamp(0, 1)
        return (1 - slowed) * plain + slowed * plain / self.factor


@checked
@dataclass(frozen=True)
class LongRope(RopeScaling):
    """Each pair's frequency divided by a factor of its own, which is larger in long texts (arXiv:2402.13753).

    The ``short`` factors hold for texts of up to ``original_max_positions`` tokens, the ``long`` ones for longer texts.

    All frequencies change once a text exceeds ``original_max_positions``, so keys cached before would be stale.

    Args:
        short, long: the factors, one for each pair.
        original_max_positions: the length of the texts before.
        attention_factor: the factor of cosine and sine; as published
            ``sqrt(1 + ln(factor) / ln(original_max_positions))`` for texts ``factor`` times as long.

    Raises:
        ArgumentError: factors that are not above 0, or not as many of each kind.
    """

    short: Sequence[float]
    long: Sequence[float]
    original_max_positions: int
    attention_factor: float = 1.0

    def __post_init__(self) -> None:
        for name in ("short", "long"):
            factors = tuple(getattr(self, name))
            if len(factors) != len(self.short) or not all(0 < factor < math.inf for factor in factors):
                rule = "must be finite numbers above 0, as many `short` as `long` ones"
                raise wrong(name, rule, f"it is {factors!r:.80}", "Give one for each pair of features.")
            object.__setattr__(self, name, factors)

    @property
    def length_dependent_from(self) -> int | None:
        """The length of the texts before: beyond, the ``long`` factors hold."""
        return self.original_max_positions

    def frequencies(self, plain: Tensor, lengths: Tensor) -> Tensor:
        """The ``plain`` frequencies ``(D / 2,)`` divided by the factors for ``lengths`` ``(B | 1, 1)``."""
        if len(plain) != len(self.short):
            got = f"there are {len(self.short)} for {len(plain)} pairs"
            raise wrong("short", "must have one factor for each pair of features", got, "Change the width of `Rotary`.")
        short, long = (torch.tensor(one, dtype=plain.dtype, device=plain.device) for one in (self.short, self.long))
        return plain / torch.where(lengths > self.original_max_positions, long, short)


@checked
@dataclass(frozen=True)
class Rotary:
    """Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    ``angle(p, i) = p * theta ** (-2 i / width)`` for position ``p`` and pair ``i`` of ``width / 2``. The score of a
    rotated query and a rotated key depends on the distance of their positions only.

    Angles are computed in float64 and rounded once, as cosine and sine: the products of a float32 computation are off
    by some ten-thousandths of a radian at position 8,000.

    Args:
        width: features of a head that are rotated, even; the first of a wider head (partial rotation).
        theta: the base of the frequencies; larger for longer texts.
        scaling: of the frequencies for longer texts, or ``None``.
        pairing: which features are rotated as a pair.
    """

    width: int
    theta: float = 10_000.0
    scaling: RopeScaling | None = None
    pairing: Pairing = SplitHalves()

    def __post_init__(self) -> None:
        if self.width < 2 or self.width % 2:
            got, way_out = f"it is {self.width}", f"Use {max(self.width + self.width % 2, 2)}."
            raise wrong("width", "must be even: RoPE rotates pairs of features", got, way_out)

    def at(self, positions: Tensor, dtype: torch.dtype, lengths: Tensor | None = None) -> Rotation:
        """The rotation of tokens at ``positions`` ``(B | 1, L)``, in the ``dtype`` of the heads.

        Args:
            positions: of the tokens.
            dtype: of the heads.
            lengths: ``(B | 1, 1)``, of the texts, for a scaling that depends on them; ``None`` for the last of the
                ``positions`` plus 1.
        """
        pairs = torch.arange(0, self.width, 2, dtype=torch.float64, device=positions.device)
        frequencies = self.theta ** (-pairs / self.width)
        attention_factor = 1.0
        if self.scaling is not None:
            if lengths is None:
                lengths = positions.amax(-1, keepdim=True) + 1 if positions.shape[-1] else positions.new_zeros(1, 1)
            frequencies = self.scaling.frequencies(frequencies, lengths)
            attention_factor = self.scaling.attention_factor
        angles = positions[..., None].double() * frequencies.reshape(-1, 1, self.width // 2)  # (B | 1, L, width / 2)
        angles = angles[:, None]
        return Rotation.by(
            (angles.cos() * attention_factor).to(dtype), (angles.sin() * attention_factor).to(dtype), self.pairing
        )
