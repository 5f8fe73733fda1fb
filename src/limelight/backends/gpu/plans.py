"""Plans: the host side of a call, recorded once for each *form* of call and then repeated.

The form is all on which the host side of a call depends: sizes, strides, dtypes and alignments of the tensors, and the
settings as values (`form`). Nothing else changes what is launched, with which constants, grid and numbers. So a call of
a form that was seen before needs new results, new workspace, and the launches, with new addresses.

The first call of a form runs as it is written, which compiles its kernels and uploads its tables. The second one is
*captured* (`limelight.backends.gpu.capturing`), as by a CUDA graph. Every later one repeats the record. All memory is
allocated anew by each call, on its stream, so calls of several threads may overlap, and CUDA graphs may capture them.

In a text that grows, every length is another form. Where only some integers of the launches differ between lengths
(`Lengths`), the record of one length is bound to others (`Plan.bound`), and only one call of each kind is captured.
With ``LIMELIGHT_PLANS=0`` in the environment every call runs as it is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...forms.descriptions import Description
from ...forms.lowering import Lowered
from ...tensors.shapes import PLAIN
from ..contract import Call, Result
from .arguments import page_table
from .capturing import Capture, Plan, Results, Tensors

ENABLED = os.environ.get("LIMELIGHT_PLANS", "1") != "0"
MAX_PLANS = 256  # of calls whose pattern is arithmetic
MAX_PLANS_OF_TABLES = 16  # of calls with one set of intervals or tiles in memory
_GROWING = (1, 2)  # the places of key and value among the tensors of a call
ATTEMPTS = 3  # calls of a form that are captured, before it is left without a plan


class _Kept:
    """A plan, or how often its form was seen; and when it was last looked up."""

    __slots__ = ("plan", "used")

    def __init__(self, plan: Plan | int, used: int) -> None:
        self.plan, self.used = plan, used


class Plans:
    """The plans of the forms seen most recently; of a form without one, how often it was seen."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: dict[Hashable, _Kept] = {}
        self._time = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, form: Hashable) -> Plan | int:
        """The plan of a form, or how often it was seen."""
        found = self._kept.get(form)
        if found is None:
            return 0
        found.used = self._time = self._time + 1
        return found.plan

    def put(self, form: Hashable, plan: Plan | int) -> None:
        """Keep a plan, or a count. Where these are too many, those that were not used for the longest time are
        forgotten, an eighth of all at once.
        """
        self._time += 1
        self._kept[form] = _Kept(plan, self._time)
        if len(self._kept) > self.most:
            oldest = sorted([(kept.used, n, form) for n, (form, kept) in enumerate(list(self._kept.items()))])
            for _, _, form in oldest[: len(oldest) - self.most + self.most // 8]:
                self._kept.pop(form, None)

    def plans(self) -> list[Plan]:
        """All plans that are kept."""
        return [kept.plan for kept in list(self._kept.values()) if isinstance(kept.plan, Plan)]

    def clear(self) -> None:
        """Forget every plan, and every count of forms."""
        self._kept.clear()


class Lengths(NamedTuple):
    """What of the host side of a call follows from the lengths of its sequences.

    Calls of equal ``kind``, whose forms are equal but for the number of keys, the strides of keys and values, and the
    segments, make the same launches with other ``numbers`` and ``tables`` in them.
    """

    kind: Hashable
    numbers: dict[str, tuple[int, ...]]  # by name, those of `limelight.backends.gpu.launching.Numbers`
    tables: Tensors  # on the device


_of_arithmetic = Plans(MAX_PLANS)
_of_tables: WeakKeyDictionary[Lowered, Plans] = WeakKeyDictionary()


def clear() -> None:
    """Forget the plans of all calls, as after a change of tiles or constants."""
    _of_arithmetic.clear()
    _of_tables.clear()


def forward(
    call: Call,
    name: str,
    compute: Callable[[Call], Result],
    lengths: Callable[[Call], Lengths | None] | None = None,
) -> Result:
    """``compute(call)``, the forward pass of the backend ``name``, by a plan if there is one.

    With ``lengths``, a plan serves calls of other lengths, too.
    """
    if call.observe is not None:
        with _on_device_of(call.query):
            return compute(call)

    def run() -> Results:
        result = compute(call)
        return result.output, result.logsumexp

    output, logsumexp = planned(call, name, (call.query, call.key, call.value), run, lengths)
    assert output is not None
    return Result(output, logsumexp)


def planned(
    call: Call,
    what: Hashable,
    tensors: Tensors,
    compute: Callable[[], Results],
    lengths: Callable[[Call], Lengths | None] | None = None,
) -> Results:
    """``compute()``, or the repetition of an earlier one of the same form.

    Args:
        call: the call.
        what: the name of what is computed, and whatever the host side of ``compute`` depends on beside the call and the
            sizes, strides, dtypes and alignments of ``tensors``.
        tensors: those that kernels read, all of one device, but without those of the settings.
        compute: launches kernels by `limelight.backends.gpu.launching.launch`.
        lengths: what of it follows from the lengths of the call; ``None`` where every length has its own plan.
    """
    query = call.query
    if query.is_cuda and query.device.index != torch.cuda.current_device():
        with _on_device_of(query):
            return planned(call, what, tensors, compute, lengths)
    found = form(call, what, tensors) if ENABLED else None
    if found is None:
        return compute()
    plans, key, inputs = found
    plan = plans.get(key)
    if not isinstance(plan, int):
        return plan.run(inputs)
    by_length = lengths(call) if lengths is not None and plans is _of_arithmetic else None
    if by_length is None:
        return _captured(plans, key, plan, Capture(inputs), compute)
    of_kind = form(call, what, tensors, by_length.kind)
    assert of_kind is not None
    plan = plans.get(of_kind[1])
    if isinstance(plan, int):
        capture = Capture(inputs, by_length.tables)
        return _captured(plans, key, plan, capture, compute, of_kind[1], by_length.numbers)
    bound = plan.bound(by_length.numbers, by_length.tables)
    plans.put(key, bound)
    return bound.run(inputs)


def _captured(
    plans: Plans, key: Hashable, seen: int, capture: Capture, compute: Callable[[], Results],
    of_kind: Hashable = None, numbers: dict[str, tuple[int, ...]] | None = None,
) -> Results:  # fmt: skip
    """``compute()``, captured where its form, or all forms of its kind, were ``seen`` before; a plan is kept for both.

    Args:
        plans: where.
        key: of the form.
        seen: how many calls of the form, or of its kind, were counted.
        capture: records the call.
        compute: computes it.
        of_kind: the key of all calls of its kind; ``None`` where every form has a plan of its own.
        numbers: those that follow from the lengths of the call.
    """
    plans.put(key if numbers is None else of_kind, seen + 1)
    if not 1 <= seen <= ATTEMPTS:
        return compute()
    results = capture.run(compute)
    made = capture.plan(results)
    if made is not None:
        plans.put(key, made)
        if numbers is not None and not capture.why_one_length(numbers):
            plans.put(of_kind, made)
    return results


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which kernels are launched on the device of a tensor: it is the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def form(call: Call, what: Hashable, tensors: Tensors, kind: Hashable = None) -> tuple[Plans, Hashable, Tensors] | None:
    """Where the plan of a call is kept, under which key, and all tensors whose addresses it takes; ``None`` where there
    is none.

    With the ``kind`` of its `Lengths`, the key of all calls of that kind.
    """
    if call.observe is not None or call.scales is not None:
        return None
    lowered = call.lowered
    settings: Hashable = call.scale
    if call.sink is not None or call.scores or call.compare is not None or call.dropout or call.pages is not None:
        settings = _settings(call)
        if settings is None:
            return None
        tensors += _operands(call)
    shapes = call.shapes if kind is None else call.shapes._replace(Lk=0)
    described: list[Any] = [what, shapes, settings, call.query.device]
    addresses = []
    for n, tensor in enumerate(tensors):
        if tensor.is_neg():
            return None
        address = tensor.data_ptr()
        described += (tensor.stride() if kind is None or n not in _GROWING else None, tensor.dtype, address & 15)
        addresses.append(address)
    if len(set(addresses)) < len(addresses):  # a capture cannot tell which of two tensors at one place is meant
        described.append(tuple(map(addresses.index, addresses)))
    if lowered.arrays is None and lowered.tiles is None:
        described += (lowered.segments if kind is None else kind, lowered.spans)
        return _of_arithmetic, tuple(described), tensors
    plans = _of_tables.get(lowered)
    if plans is None:
        plans = _of_tables[lowered] = Plans(MAX_PLANS_OF_TABLES)
    return plans, tuple(described), tensors


def _operands(call: Call) -> Tensors:
    """The tensors of the settings, and the page table."""
    found = call.operands
    if call.dropout and isinstance(call.seed, Tensor):
        found += (call.seed,)
    if call.pages is not None:
        found += (page_table(call.pages, call.query.device),)
    return found


def _settings(call: Call) -> Hashable | None:
    """All settings of a call but its layout and pattern, with shapes, dtypes and devices in the place of tensors.

    ``None`` where there is no plan: a function among the settings may compute anything, a tensor subclass be anywhere,
    and a seed that is a number differs from call to call.
    """
    if call.dropout and not isinstance(call.seed, Tensor):
        return None
    described: list[Any] = [call.scale, call.dropout]
    parts: list[Any] = [call.sink, call.seed]
    for rule in (*call.scores, call.compare):
        if rule is not None:
            parts += (type(rule), *rule.parts())
    for part in parts:
        if isinstance(part, Tensor):
            if type(part) not in PLAIN:
                return None
            described.append((part.shape, part.dtype, part.device))
        elif callable(part) and not isinstance(part, type) and not (isinstance(part, Description) and part.is_fixed):
            return None
        else:
            described.append((type(part), part))
    if call.dropout:
        described.append(call.layout.documents if call.layout else 1)
    if call.pages is not None:
        described += (call.pages.size, call.key.shape, call.value.shape)
        described += page_table(call.pages, call.query.device).shape
    return tuple(described)
