"""The call that ``limelight explain`` explains, made from its options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..forms.layouts import Layout
    from ..forms.patterns import Pattern
    from ..operator.explanation import Explanation


@dataclass(frozen=True)
class ExplainedCall:
    """A call of `limelight.attention` in the words of the command line: each field is the option of its name."""

    heads: int
    key_value_heads: int | None
    length: int
    queries: int | None
    batch: int
    documents: int
    width: int
    pattern: str
    back: int
    first: int
    score: Sequence[str]
    compare: str
    sink: bool
    dropout: float
    observe: Sequence[str]
    cache: str | None
    dtype: torch.dtype
    gradients: bool
    backend: str | None

    def explain(self) -> tuple[str, Explanation]:
        """The pattern as printed, and the explanation of the call.

        Raises:
            ArgumentError: an option has another value than those that its help names, or options do not fit.
        """
        import torch

        from ..operator.explanation import explain

        Hq, Hkv, Lq, Lk, D = self.sizes
        # Nothing is computed and nothing of this size is held: one element is seen at every place.
        one = torch.zeros((), dtype=self.dtype).requires_grad_(self.gradients)
        query, key = one.expand(self.batch, Hq, Lq, D), one.expand(self.batch, Hkv, Lk, D)
        pattern = self._pattern()
        settings: dict[str, Any] = {
            "layout": self._layout(),
            "pattern": pattern,
            "scores": tuple(self._score(name, one) for name in self.score),
            "compare": self._compare(one),
            "sink": one.expand(Hq) if self.sink else None,
            "dropout": self.dropout,
            "observe": self._observe(),
        }
        stored = self._stored(key)
        return repr(pattern), explain(query, stored, stored, backend=self.backend, **settings)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """``(Hq, Hkv, Lq, Lk, D)``.

        Raises:
            ArgumentError: heads, or tokens of documents, that do not divide.
        """
        from ..tensors.shapes import wrong

        Hq, Hkv = self.heads, self.heads if self.key_value_heads is None else self.key_value_heads
        if Hq % Hkv:
            rule = "must be a divisor of --heads, since each key-value head serves as many query heads"
            raise wrong("--key-value-heads", rule, f"{Hq} is not a multiple of {Hkv}", "Correct one of them.")
        Lq = self.length if self.queries is None else self.queries
        for name, tokens in (("--length", self.length), ("--queries", Lq)):
            if tokens % self.documents:
                rule = "must be a multiple of --documents, which are equally long"
                raise wrong(name, rule, f"{tokens} is not one of {self.documents}", "Correct one of them.")
        return Hq, Hkv, Lq, self.length, self.width

    def _pattern(self) -> Pattern:
        from ..forms.patterns import Causal, Full, Keys, Window

        window = Window(self.back, 0) | Keys(self.first) if self.first else Window(self.back, 0)
        patterns = {"full": Full(), "causal": Causal(), "window": Causal() & window}
        found: Pattern = _one_of("--pattern", patterns, self.pattern)
        return found

    def _layout(self) -> Layout | None:
        from ..forms.layouts import Packed

        if self.documents == 1:
            return None
        _, _, Lq, Lk, _ = self.sizes
        return Packed((Lq // self.documents,) * self.documents, (Lk // self.documents,) * self.documents)

    def _score(self, name: str, one: Tensor) -> Any:
        from ..forms.scores import ALiBi, Bias, RelativeBias, SoftCap

        Hq, _, Lq, Lk, _ = self.sizes
        rules = {
            "alibi": lambda: ALiBi(one.expand(Hq)),
            "t5": lambda: RelativeBias(one.expand(Hq, 32)),
            "bias": lambda: Bias(one.expand(Lq, Lk)),
            "softcap": lambda: SoftCap(50.0),
        }
        return _one_of("--score", rules, name)()

    def _compare(self, one: Tensor) -> Any:
        from ..forms.scores import Additive, CosineSimilarity

        made = {"dot": lambda: None, "additive": lambda: Additive(one.expand(self.width)), "cosine": CosineSimilarity}
        return _one_of("--compare", made, self.compare)()

    def _observe(self) -> Any:
        from ..forms.observations import Observe

        if not self.observe:
            return None
        names = ("logsumexp", "max_score", "max_weight", "entropy", "distance", "received")
        kinds: dict[str, dict[str, Any]] = {name: {name: True} for name in names}
        kinds |= {"top": {"top": 8}, "rows": {"rows": (0,)}, "blocks": {"blocks": (64, 64)}}
        fields: dict[str, Any] = {}
        for name in self.observe:
            fields |= _one_of("--observe", kinds, name)
        return Observe(**fields)

    def _stored(self, key: Tensor) -> Any:
        """Keys and values, or as many of 8 bits."""
        import torch

        from ..forms.quantized import Quantized, eight_bits

        if self.cache is None:
            return key
        number = torch.float64 if self.dtype is torch.float64 else torch.float32
        data = torch.zeros((), dtype=eight_bits("--cache", self.cache)).expand(key.shape)
        return Quantized.trusted(data, torch.zeros((), dtype=number).expand(*key.shape[:3], 1), rotated=True)


def _one_of(option: str, known: dict[str, Any], name: str) -> Any:
    """The value of that name.

    Raises:
        ArgumentError: there is none.
    """
    from ..tensors.shapes import wrong

    if name not in known:
        raise wrong(option, f"must be one of {', '.join(known)}", f"it is {name!r}", "See limelight explain --help.")
    return known[name]
