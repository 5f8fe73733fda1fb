"""How a call would be computed, without computing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..backends import BACKENDS, choose, passed_over
from ..backends.contract import (
    Backend,
    BackendError,
    Call,
    MayFail,
    reasons_against_eight_bits,
    reasons_against_pages,
)
from ..forms.layouts import Layout
from ..forms.quantized import Quantized
from ..forms.settings import Settings, SettingsFields
from . import derivatives
from .calling import check_eight_bits, prepare, why_autograd, why_converted, why_dense, why_overflowing, with_batch
from .keywords import unexpected

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Explanation:
    """How a call would be computed, and why; printed, a report in words."""

    backend: str | None  # None where a call raises BackendError
    gradients: str  # how derivatives are taken, when any are wanted
    reasons: dict[str, list[str]]
    about: dict[str, str]
    pairs: int
    all_pairs: int
    form: str
    memory: int
    score_memory: int
    over_ranks: object | None = None  # the report of a layout whose tokens lie on several processes
    pages: str = ""  # how keys in pages are read, when they lie in some
    failing: str | None = None  # the backend that would be given the call, and fail
    eight_bits: str = ""  # how keys and values of 8 bits are read, when they have as many

    def __str__(self) -> str:
        share = self.pairs / self.all_pairs if self.all_pairs else 0.0
        lines = [
            f"backend: {self._backend()}",
            f"pairs:   {self.pairs:,} of {self.all_pairs:,} (query, key) pairs are seen ({share:.1%}), as {self.form}",
            f"memory:  about {self.memory / 2**20:,.1f} MiB beside inputs and outputs"
            f" (the whole score matrix would be {self.score_memory / 2**20:,.1f} MiB)",
        ]
        lines += [f"pages:   {self.pages}"] if self.pages else []
        lines += [f"8 bits:  {self.eight_bits}"] if self.eight_bits else []
        lines += [f"derivatives: {self.gradients}"] if self.gradients else []
        lines += [f"not {name}: {'; '.join(why)}" for name, why in self.reasons.items() if why]
        lines += [str(self.over_ranks)] if self.over_ranks is not None else []
        return "\n".join(lines)

    def _backend(self) -> str:
        if self.backend:
            return f"{self.backend} ({self.about[self.backend]})"
        return f"none; {self.failing} would be given the call, and fail" if self.failing else "none can serve this"


def explain(
    query: Tensor,
    key: Tensor | Quantized,
    value: Tensor | Quantized,
    *,
    backend: str | None = None,
    **settings: Unpack[SettingsFields],
) -> Explanation:
    """Which backend would run a call of `attention`, why each other one would not, and what the call costs.

    Under a layout whose tokens lie on several processes (`limelight.distributed.ContextParallel`), that is said of this
    process's own call, and ``over_ranks`` reports pairs and bytes sent of all of them, without communication. Under a
    layout whose keys lie in pages (`limelight.Paged`), ``pages`` says whether they are read in place, or why not; of
    keys and values of 8 bits (`limelight.Quantized`), ``eight_bits`` says so.

    Args:
        query: ``(B, Hq, Lq, D)``, or all three without ``B``.
        key: ``(B, Hkv, Lk, D)``.
        value: ``(B, Hkv, Lk, Dv)``.
        backend: ``None`` for the one that would be chosen.
        settings: the settings of `limelight.attention`: layout, pattern, compare, scores, sink, scale, dropout, seed,
            observe.

    Raises:
        ArgumentError: an argument breaks a rule.
    """
    if isinstance(query, Tensor) and query.dim() == 3 and not query.is_nested:
        query, key, value = with_batch(query, key, value)
    if unknown := settings.keys() - SettingsFields.__annotations__:
        raise unexpected("explain", unknown, "backend")
    if settings.get("seed") is None:
        settings["seed"] = 0  # nothing is drawn
    whole, over_ranks = Settings(**settings), None
    if isinstance(whole.layout, Layout) and whole.layout.spread:
        dense = [query.new_empty(x.shape) if isinstance(x, Quantized) else x for x in (key, value)]
        key, value, whole, over_ranks = whole.layout.explained(query, dense[0], dense[1], whole)
    key, value, eight_bits, copied = _eight_bits(query, key, value, whole, backend)
    call, chosen, pages, gathered = _arranged(query, key, value, whole, backend)
    reasons = {b.NAME: passed_over(call, b) for b in BACKENDS if b is not chosen}
    failing = chosen.why_failing() if isinstance(chosen, MayFail) else ""
    if chosen is not None and failing:
        reasons[chosen.NAME] = [failing]
    served = None if failing else chosen
    B, Hq, Lq, Lk = call.shapes.scores
    return Explanation(
        backend=served.NAME if served else None,
        gradients=derivatives.explain(call, served) if served and call.autograd_reason else "",
        reasons=reasons,
        about={b.NAME: b.ABOUT for b in BACKENDS},
        pairs=call.lowered.pairs(),
        all_pairs=B * Hq * Lq * Lk,
        form=call.lowered.form,
        memory=derivatives.memory(call, served) + call.lowered.bytes + gathered + copied if served else 0,
        score_memory=B * Hq * Lq * Lk * max(4, call.query.dtype.itemsize),
        over_ranks=over_ranks,
        pages=pages,
        eight_bits=eight_bits,
        failing=chosen.NAME if chosen is not None and failing else None,
    )


def _eight_bits(query: Tensor, key: Any, value: Any, settings: Settings, name: str | None) -> tuple[Any, Any, str, int]:
    """Keys and values as they are read: their 8 bits, or tensors as large as the dense ones; which of them and why; and
    the bytes of a copy, which is not made.
    """
    if not (isinstance(key, Quantized) or isinstance(value, Quantized)):
        return key, value, "", 0
    call = prepare(query, key, value, settings.replace(compare=None))
    check_eight_bits(call, why_autograd(call))
    why = why_dense(query, settings) or ("" if call.scales else "key and value differ in dtype or rotation")
    chosen = None if why else _chosen(call, name)
    why = (
        why or ("" if chosen is None else "; ".join(reasons_against_eight_bits(chosen, call))) or why_overflowing(call)
    )
    if not why:
        return key, value, f"{str(key.dtype).removeprefix('torch.')}, read as they lie", 0
    dense = [query.new_empty(x.shape) if isinstance(x, Quantized) else x for x in (key, value)]
    copied = sum(x.nbytes for x in dense)
    return dense[0], dense[1], f"made dense before, {copied / 2**20:,.1f} MiB: {why}", copied


def _arranged(
    query: Tensor, key: Any, value: Any, settings: Settings, name: str | None
) -> tuple[Call, Backend | None, str, int]:
    """The call as it would be computed, by which backend, how keys in pages are read, and the bytes of a copy of them,
    which is not made.
    """
    layout, why = settings.layout, ""
    if not isinstance(layout, Layout) or not layout.paged:
        call = prepare(query, key, value, settings)
    else:
        call = prepare(query, key, value, settings.replace(compare=None))
        call = call.replace(autograd_reason=why_autograd(call))
        chosen = _chosen(call, name)
        why = why_converted(query, key, settings) or call.autograd_reason
        why = why or "; ".join(reasons_against_pages(chosen, call) if chosen else [])
        if not why:
            assert call.pages is not None
            return call, chosen, f"read in place, {call.pages.size} keys in each", 0
        key, value = (_rows(tensor, call.shapes.Lk) for tensor in (key, value))
        call = prepare(query, key, value, settings.replace(layout=layout.in_rows))
    call = call.replace(autograd_reason=why_autograd(call))
    copied = key.nbytes + value.nbytes if why else 0
    return call, _chosen(call, name), f"gathered before, {copied / 2**20:,.1f} MiB: {why}" if why else "", copied


def _rows(stored: Tensor, Lk: int) -> Tensor:
    """As large as the rows that are gathered of the pages ``stored``, without their values."""
    _, H, _, D = stored.shape
    return stored.new_empty(1, Lk, H, D).transpose(1, 2).requires_grad_(stored.requires_grad)


def _chosen(call: Call, name: str | None) -> Backend | None:
    try:
        return choose(call, name)
    except BackendError:
        return None
