"""`Capture`: records what the host side of a call does. `Plan`: repeats it for other tensors.

Recorded are launches of kernels, allocations, and operations of PyTorch. Each tensor among their arguments is one of

- the call's own, or in memory that the call has allocated: the plan numbers these pieces of memory and keeps none;
- a table of the library on the device, the same for all calls of a form, which the plan keeps.

Whatever else happens ends the capture, with a reason (`Capture.why_not`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...tensors.torch_internals import allocator
from . import launching
from .launching import Launch, Launched, Path, Place, tensors_in

Tensors = tuple[Tensor, ...]
Results = tuple[Tensor | None, ...]

ALIGNMENT = 512  # bytes; as much as that of memory from PyTorch's allocator on GPUs
_EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
_ZEROS = ("zeros", "zeros_like", "new_zeros")
_FILLED = {"full": 1, "full_like": 1, "new_full": 2}  # the index of the value among the arguments


class Made(NamedTuple):
    """A tensor that a call allocates, and the number that it is filled with, if any."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    fill: float | None


class Operation(NamedTuple):
    """An operation of PyTorch, with a `Place` for each tensor among its arguments.

    ``results``: which of its outputs are new memory.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    results: tuple[int, ...]

    def dispatched(self, tensors: list[Tensor]) -> None:
        """Run, and number the new memory."""
        arguments = [
            x.of(tensors)
            if isinstance(x, Place)
            else [y if y is None else y.of(tensors) for y in x]
            if type(x) is _Places
            else x
            for x in self.arguments
        ]
        found = self.function(*arguments, **self.keywords)
        outputs = [found] if isinstance(found, Tensor) else found
        tensors += [outputs[n] for n in self.results]

    def places(self) -> Iterator[Place]:
        """The places of all tensors among the arguments."""
        for argument in self.arguments:
            if isinstance(argument, Place):
                yield argument
            elif type(argument) is _Places:
                yield from (place for place in argument if place is not None)

    def moved(self, to: Callable[[Place], Place]) -> Operation:
        """This operation with each place replaced by ``to(place)``."""
        return self._replace(arguments=tuple([_mapped(argument, to) for argument in self.arguments]))


class _Places(list[Place | None]):
    """A list of tensors among the arguments of an operation."""


def _mapped(argument: Any, to: Callable[[Place], Place]) -> Any:
    if isinstance(argument, Place):
        return to(argument)
    return _Places([x and to(x) for x in argument]) if type(argument) is _Places else argument


class Plan:
    """A recorded call. Memory is numbered: first the tensors given, then the tables, then what is allocated, then that
    of operations.

    Args:
        tables: tensors that the plan keeps, and that `bound` replaces.
        made: what a call allocates, on ``device``.
        steps: launches and operations, in order.
        places: the beginnings of tensors that launches take, by memory and offset, in the order of the memory.
        results: what is returned, each a place, or the number of memory that is wholly one result.
    """

    def __init__(
        self, device: torch.device, tables: Tensors, made: list[Made], steps: list[Launch | Operation],
        places: list[tuple[int, int]], results: list[Place | int | None],
    ) -> None:  # fmt: skip
        self.device, self.tables, self.made, self.steps, self.places = device, tables, made, steps, places
        self.results = results
        self.driver = launching.driver()
        self.empty = allocator(device)
        self.has_operations = any(isinstance(step, Operation) for step in steps)
        self.direct = [step if isinstance(step, Operation) else step.direct for step in steps]

    def run(self, inputs: Tensors) -> Results:
        """The results for other tensors of the same form."""
        tensors, driver = [*inputs, *self.tables], self.driver
        empty = self.empty
        for shape, strides, dtype, fill in self.made:
            tensor = empty(shape, strides, dtype)
            tensors.append(tensor if fill is None else tensor.fill_(fill) if fill else tensor.zero_())
        if driver is None or driver.hooked():
            for step in self.steps:
                step.dispatched(tensors)
        else:
            stream = driver.stream(self.device.index)
            addresses = self._addresses(tensors)
            for one in self.direct:
                if isinstance(one, Operation):
                    one.dispatched(tensors)
                    addresses = self._addresses(tensors)
                else:
                    one(stream, addresses)
        return tuple(
            [x.of(tensors) if isinstance(x, Place) else None if x is None else tensors[x] for x in self.results]
        )

    def _addresses(self, tensors: list[Tensor]) -> list[int]:
        """The addresses of `places`, as far as there is memory for them."""
        first = list(map(Tensor.data_ptr, tensors))
        if self.has_operations:
            known = len(first)
            return [first[base] + offset for base, offset in self.places if base < known]
        return [first[base] + offset for base, offset in self.places]

    def bound(self, numbers: dict[str, tuple[int, ...]], tables: Tensors) -> Plan:
        """The plan of a call of another length of the same kind (`limelight.backends.gpu.plans`)."""
        made = object.__new__(Plan)
        made.__dict__.update(self.__dict__)
        made.tables = tables
        made.steps = [step if isinstance(step, Operation) else step.bound(numbers) for step in self.steps]
        made.direct = [step if isinstance(step, Operation) else step.direct for step in made.steps]
        return made


class _Memory(NamedTuple):
    """A piece of memory of a call, kept alive during the capture. ``made``: how it is allocated, if it is."""

    tensor: Tensor
    begin: int
    end: int
    given: bool
    made: Made | None


def _whole(place: Place, given: int, made: list[Made]) -> Place | int:
    """A place, or the number of the memory where it is a whole tensor that the plan allocates."""
    n = place.base - given
    alike = 0 <= n < len(made) and made[n][:3] == (place.shape, place.strides, place.dtype)
    return place.base if alike and not place.offset else place


class Capture(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records one call.

    Args:
        inputs: the tensors of the call whose elements kernels read; two at the same address are so in every call.
        tables: tensors of the library that follow from the lengths of the call, for `Plan.bound`.

    Attributes:
        why_not: why there can be no plan; empty where there can.
    """

    def __init__(self, inputs: Tensors, tables: Tensors = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.why_not = ""
        self._memory: list[_Memory] = []
        self._steps: list[tuple[Launched, dict[Path, Place], Any] | Operation] = []
        self._paused = False
        self._tables = tables
        for tensor in (*inputs, *tables):
            self._add(tensor, given=True)
        self._given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self._device = inputs[0].device

    def run(self, compute: Callable[[], Results]) -> Results:
        """Return ``compute()``, and record what it does."""
        if launching.local.recorder is not None:
            self.why_not = "another capture is running"
            return compute()
        launching.local.recorder = self
        try:
            with torch.no_grad(), self:
                return compute()
        finally:
            launching.local.recorder = None

    def plan(self, results: Results) -> Plan | None:
        """The plan of what was recorded, which gave ``results``; ``None`` where there can be none."""
        places = [None if result is None else self._place_of_result(result) for result in results]
        if self.why_not:
            return None
        apart = {place.base for place in places if place is not None}
        for step in self._steps:
            if isinstance(step, Operation):
                apart |= {place.base for place in step.places()}
        made, moved = self._arranged(apart)

        def to(place: Place) -> Place:
            number, offset = moved[place.base]
            return place._replace(base=number, offset=place.offset + offset)

        steps = [
            step.moved(to)
            if isinstance(step, Operation)
            else (step[0], {path: to(place) for path, place in step[1].items()}, step[2])
            for step in self._steps
        ]
        used = {place[:2] for step in steps if not isinstance(step, Operation) for place in step[1].values()}
        given = sum(memory.given for memory in self._memory)
        numbered = {place: number for number, place in enumerate(sorted(used))}
        repeated = [step if isinstance(step, Operation) else Launch(*step, numbered) for step in steps]
        found = [place and _whole(to(place), given, made) for place in places]
        return Plan(self._device, self._tables, made, repeated, list(numbered), found)

    def why_one_length(self, numbers: dict[str, tuple[int, ...]]) -> str:
        """Why the plan is right for the lengths of this call alone; empty where `Plan.bound` makes those of others.

        ``numbers``: those that follow from the lengths of this call.
        """
        read = set()
        for step in self._steps:
            if isinstance(step, Operation):
                return "an operation may depend on the lengths"
            launched, places, _ = step
            if any(numbers.get(what) != launched.arguments[index] for index, what in launched.numbers.items()):
                return "the integers of a launch are not those that follow from the lengths"
            read |= {place.base for place in places.values()}
        given = sum(memory.given for memory in self._memory)
        unread = set(range(given - len(self._tables), given)) - read
        return "a table that follows from the lengths was made anew" if unread else ""

    def _arranged(self, apart: set[int]) -> tuple[list[Made], dict[int, tuple[int, int]]]:
        """What a plan allocates, and for each piece of memory its number there, with the place within it.

        Workspace that launches alone use is allocated in one piece, and that which is cleared first in another.
        """
        given = [n for n, memory in enumerate(self._memory) if memory.given]
        moved = {n: (n, 0) for n in given}
        made: list[Made] = []
        for fill in (None, 0):
            total = 0
            for n, memory in enumerate(self._memory):
                if memory.made is not None and n not in apart and memory.made.fill == fill:
                    moved[n] = (len(given) + len(made), total)
                    total += -(-(memory.end - memory.begin) // ALIGNMENT) * ALIGNMENT
            if total:
                made.append(Made((total,), (1,), torch.uint8, fill))
        rest = [n for n, memory in enumerate(self._memory) if memory.made is not None and n not in moved]
        for n in rest:
            moved[n] = (len(given) + len(made), 0)
            made.append(self._memory[n].made)  # type: ignore[arg-type]
        results = [n for n, memory in enumerate(self._memory) if not memory.given and memory.made is None]
        return made, moved | {n: (len(given) + len(made) + k, 0) for k, n in enumerate(results)}

    def launch(self, launched: Launched) -> None:
        """Launch through Triton's dispatch, and record the launch."""
        self._paused = True  # the interpreter computes by operations of PyTorch
        try:
            compiled = launched.dispatch()
        finally:
            self._paused = False
        places = {}
        for path, tensor in tensors_in(launched.arguments, ()):
            place = self._place(tensor)
            if place is not None:
                places[path] = place
        self._steps.append((launched, places, compiled))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """PyTorch would import its compiler (seconds) at the first operation, to keep the mode from being traced."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if not self._paused and not self.why_not:
            self._record(function, args, kwargs, result)
        return result

    def _record(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        name = function.overloadpacket.__name__
        if name in _EMPTY or name in _ZEROS or name in _FILLED:
            self._add(result, fill=args[_FILLED[name]] if name in _FILLED else 0 if name in _ZEROS else None)
            return
        lists = [x for x in args if isinstance(x, (list, tuple)) and any(isinstance(y, Tensor) for y in x)]
        read = [x for x in (*args, *(y for part in lists for y in part)) if isinstance(x, Tensor)]
        outputs = [result] if isinstance(result, Tensor) else result
        if not isinstance(outputs, (list, tuple)) or not all(isinstance(x, Tensor) for x in outputs):
            self.why_not = f"{name} reads elements on the host"
            return
        storages = {x.untyped_storage().data_ptr() for x in read}
        new = [n for n, x in enumerate(outputs) if x.untyped_storage().data_ptr() not in storages]
        if not new and not function._schema.is_mutable:  # views
            return
        places = {id(x): self._place(x) for x in read}
        if None in places.values() or any(isinstance(x, Tensor) for x in kwargs.values()):
            self.why_not = self.why_not or f"{name} reads a tensor that is neither given nor made by the call"
            return
        arguments = [
            _Places([places.get(id(y)) for y in x]) if any(x is part for part in lists) else places.get(id(x), x)
            for x in args
        ]
        self._steps.append(Operation(function, tuple(arguments), kwargs, tuple(new)))
        for n in new:
            self._add(outputs[n], new=True)

    def _add(self, tensor: Tensor, fill: float | None = None, given: bool = False, new: bool = False) -> None:
        """Number a piece of memory: ``given``, or ``new`` from an operation, or to be allocated."""
        if not tensor.numel() or (not given and tensor.device != self._device):
            self.why_not = "a tensor is empty or on another device"
            return
        made = None if given or new else Made(tuple(tensor.shape), tensor.stride(), tensor.dtype, fill)
        storage = tensor.untyped_storage()
        begin = tensor.data_ptr()
        self._memory.append(_Memory(tensor, begin, storage.data_ptr() + storage.nbytes(), given, made))

    def _place(self, tensor: Tensor) -> Place | None:
        """Where a tensor lies in the memory of the call; ``None`` where it does not."""
        address = tensor.data_ptr()
        for number, memory in enumerate(self._memory):
            if address == memory.begin or (not memory.given and memory.begin < address < memory.end):
                return Place(number, address - memory.begin, tensor.dtype, tuple(tensor.shape), tensor.stride())
        if not tensor.numel() or tensor.untyped_storage().data_ptr() in self._given:
            self.why_not = self.why_not or "a tensor is empty or begins within one that was given"
        return None

    def _place_of_result(self, result: Tensor) -> Place | None:
        place = self._place(result)
        if place is None or self._memory[place.base].given:
            self.why_not = self.why_not or "a result is no tensor that the call has made"
            return None
        return place
