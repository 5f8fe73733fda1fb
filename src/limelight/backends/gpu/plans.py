"""Plans: the host side of a call, recorded once for each *form* of call and then repeated.

The form is all on which the host side of a call depends: sizes, strides, dtypes and alignments of the tensors, and the
settings as values (`form`). Nothing else changes what is launched, with which constants, grid and numbers. So a call of
a form that was seen before needs new results, new workspace, and the launches, with new addresses.

The first call of a form runs as it is written, which compiles its kernels and uploads its tables. The second one is
*captured* (`limelight.backends.gpu.capturing`), as by a CUDA graph. Every later one repeats the record. All memory is
allocated anew by each call, on its stream, so calls of several threads may overlap, and CUDA graphs may capture them.
With ``LIMELIGHT_PLANS=0`` in the environment every call runs as it is written.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
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
ATTEMPTS = 3  # calls of a form that are captured, before it is left without a plan


class Plans:
    """The plans of the forms seen most recently; of a form without one, how often it was seen."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, Plan | int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, form: Hashable) -> Plan | int:
        """The plan of a form, or how often it was seen."""
        found = self._kept.get(form)
        if found is None:
            return 0
        try:  # noqa: SIM105 (suppress takes as long as all else here)
            self._kept.move_to_end(form)
        except KeyError:  # another thread has just removed it
            pass
        return found

    def put(self, form: Hashable, plan: Plan | int) -> None:
        """Keep a plan, or a count; the form that was not seen for the longest time is forgotten."""
        self._kept[form] = plan
        while len(self._kept) > self.most:
            try:
                self._kept.popitem(last=False)
            except KeyError:  # another thread did so
                break

    def clear(self) -> None:
        """Forget every plan, and every count of forms."""
        self._kept.clear()


_of_arithmetic = Plans(MAX_PLANS)
_of_tables: WeakKeyDictionary[Lowered, Plans] = WeakKeyDictionary()


def clear() -> None:
    """Forget the plans of all calls, as after a change of tiles or constants."""
    _of_arithmetic.clear()
    _of_tables.clear()


def forward(call: Call, name: str, compute: Callable[[Call], Result]) -> Result:
    """``compute(call)``, the forward pass of the backend ``name``, by a plan if there is one."""
    if call.observe is not None:
        with _on_device_of(call.query):
            return compute(call)

    def run() -> Results:
        result = compute(call)
        return result.output, result.logsumexp

    output, logsumexp = planned(call, name, (call.query, call.key, call.value), run)
    assert output is not None
    return Result(output, logsumexp)


def planned(call: Call, what: Hashable, tensors: Tensors, compute: Callable[[], Results]) -> Results:
    """``compute()``, or the repetition of an earlier one of the same form.

    Args:
        call: the call.
        what: the name of what is computed, and whatever the host side of ``compute`` depends on beside the call and the
            sizes, strides, dtypes and alignments of ``tensors``.
        tensors: those that kernels read, all of one device, but without those of the settings.
        compute: launches kernels by `limelight.backends.gpu.launching.launch`.
    """
    query = call.query
    if query.is_cuda and query.device.index != torch.cuda.current_device():
        with _on_device_of(query):
            return planned(call, what, tensors, compute)
    found = form(call, what, tensors) if ENABLED else None
    if found is None:
        return compute()
    plans, key, inputs = found
    plan = plans.get(key)
    if not isinstance(plan, int):
        return plan.run(inputs)
    plans.put(key, plan + 1)
    if not 1 <= plan <= ATTEMPTS:
        return compute()
    capture = Capture(inputs)
    results = capture.run(compute)
    made = capture.plan(results)
    if made is not None:
        plans.put(key, made)
    return results


def _on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which kernels are launched on the device of a tensor: it is the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def form(call: Call, what: Hashable, tensors: Tensors) -> tuple[Plans, Hashable, Tensors] | None:
    """Where the plan of a call is kept, under which key, and all tensors whose addresses it takes; ``None`` where there
    is none.
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
    described: list[Any] = [what, call.shapes, settings, call.query.device]
    addresses = []
    for tensor in tensors:
        address = tensor.data_ptr()
        described += (tensor.stride(), tensor.dtype, address & 15)
        addresses.append(address)
        if tensor.is_neg():
            return None
    if len(set(addresses)) < len(addresses):  # a capture cannot tell which of two tensors at one place is meant
        described.append(tuple(map(addresses.index, addresses)))
    if lowered.arrays is None and lowered.tiles is None:
        described += (lowered.segments, lowered.spans)
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
        described += (call.pages.size, call.key.shape, call.value.shape, call.pages.table.shape)
    return tuple(described)
