"""Launches of kernels: through Triton's dispatch, or directly where a plan repeats them.

Triton's dispatch finds the compiled kernel by the types and alignments of all arguments at every launch, which takes
several times as long as the launch. Where a *plan* (`limelight.backends.gpu.plans`) has established that these are as
before, its `Launch` calls the launcher of the compiled kernel itself, with addresses in the place of tensors.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .direct import FlatLaunch, Slot, Varying, flat
from .machine import interpreted


class Numbers(NamedTuple):
    """An argument of a launch: integers that follow from the lengths of a call, such as strides. A plan of one length
    serves others (`limelight.backends.gpu.plans`) with other integers here.
    """

    what: str
    values: tuple[int, ...]


def specialized_for(numbers: dict[str, tuple[int, ...]]) -> bytes:
    """What a kernel is compiled for of integers: whether each is 1, is a multiple of 16, and fits 32 bits. In a tuple,
    Triton 3.7 specializes even those of an argument that is in ``do_not_specialize``.
    """
    return bytes([(n == 1) + 2 * (n % 16 == 0) + 4 * (n >= 2**31) for of in numbers.values() for n in of])


class Launched(NamedTuple):
    """A launch of a kernel, by the arguments of `launch`; ``numbers``: which of these were `Numbers`, of what."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    settings: dict[str, Any]
    numbers: dict[int, str]

    def dispatch(self) -> Any:
        """Launch through Triton's dispatch, which returns the compiled kernel, or ``None`` from its interpreter."""
        plain = interpreted() or torch.version.hip is not None  # whose compiler takes no limit
        settings = self.settings if plain else with_registers(self.kernel, self.arguments, self.settings)
        return self.kernel[self.grid](*self.arguments, **settings)


MOST_REGISTERS = 255  # of a thread
_spilling: dict[tuple[Any, ...], bool] = {}  # by kernel, dtypes and settings: whether it spills needlessly


def with_registers(kernel: Any, arguments: tuple[Any, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a launch, with ``maxnreg`` where a thread would spill registers although it has not all of them.

    The assembler spills a few registers where more programs then fit on a multiprocessor. A limit that allows all of
    them makes it spill none; given to every kernel, the limit would cost others their second program. So a kernel is
    compiled, and looked at, before its first launch. Rescues, which may spill, are left as they are.
    """
    if "maxnreg" in settings or settings.get("RESCUE"):
        return settings
    key = (kernel, *(getattr(argument, "dtype", None) for argument in arguments), *settings.items())
    if key not in _spilling:
        _spilling[key] = spills_needlessly(*resources(kernel.warmup(*arguments, grid=(1,), **settings)))
    return settings | {"maxnreg": MOST_REGISTERS} if _spilling[key] else settings


def forget_spills() -> None:
    """Look at all kernels again before their next launch: another GPU compiles them."""
    _spilling.clear()


def spills_needlessly(registers: int, spilled: int) -> bool:
    """Whether a kernel spills although a thread could have more registers."""
    return spilled > 0 and registers < MOST_REGISTERS


def resources(compiled: Any) -> tuple[int, int]:
    """The registers of a thread of a compiled kernel, and how many it spills."""
    _ = compiled.run  # which loads the kernel, so that the driver knows them
    return compiled.n_regs, compiled.n_spills


class Recorder(Protocol):
    """What records the launches of a thread."""

    def launch(self, launched: Launched) -> None:
        """Launch through Triton's dispatch, and record the launch."""


class _Local(threading.local):
    recorder: Recorder | None = None


local = _Local()  # `recorder`: what records the launches of this thread


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **settings: Any) -> None:
    """Launch a kernel on the current stream. Every launch of a backend goes through this function, since a plan repeats
    those that it has seen.

    Args:
        kernel: a function with `triton.jit` or `gluon.jit`.
        grid: programs in each of up to three dimensions.
        arguments: tensors, numbers, ``None``, descriptors, tuples of these, and `Numbers`.
        settings: compile-time constants, and options of the compiler: ``num_warps``, ``num_stages``, ``maxnreg``.
    """
    numbers = {n: argument.what for n, argument in enumerate(arguments) if type(argument) is Numbers}
    plain = tuple([argument.values if n in numbers else argument for n, argument in enumerate(arguments)])
    launched = Launched(kernel, grid, plain, settings, numbers)
    if local.recorder is None:
        launched.dispatch()
    else:
        local.recorder.launch(launched)


class Driver(NamedTuple):
    """Triton's driver of this process, as far as direct launches need it."""

    stream: Callable[[int | None], int]  # the current one of a device
    hooked: Callable[[], bool]  # whether a profiler has Triton call a function at each launch


def driver() -> Driver | None:
    """Triton's driver; ``None`` where only Triton's dispatch launches: in its interpreter, and on other than NVIDIA's
    GPUs, where nothing else was tried.
    """
    if interpreted():
        return None
    from triton import knobs
    from triton.runtime import driver

    active, runtime = driver.active, knobs.runtime
    if active.get_current_target().backend != "cuda":
        return None

    def hooked() -> bool:
        enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
        return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))

    return Driver(active.get_current_stream, hooked)


Path = tuple[int, ...]  # of an argument: indices into nested tuples; DESCRIBED is the tensor of a descriptor
DESCRIBED = -1


class Place(NamedTuple):
    """A tensor in memory that a plan numbers: ``offset`` bytes behind the start of the memory number ``base``."""

    base: int
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, tensors: list[Tensor]) -> Tensor:
        """The tensor at this place, where ``tensors`` lie at the beginning of each memory."""
        base = tensors[self.base]
        if not self.offset and (base.dtype, base.shape, base.stride()) == (self.dtype, self.shape, self.strides):
            return base
        first = base.storage_offset() * base.itemsize + self.offset
        empty = torch.empty(0, dtype=self.dtype, device=base.device)
        return empty.set_(base.untyped_storage(), first // empty.itemsize, self.shape, self.strides)


class Launch:
    """A launch that is repeated with tensors at other addresses, and with all else as it was.

    Args:
        launched: the first launch.
        places: those of the arguments that are tensors of a call. All other tensors among them are kept.
        compiled: what Triton's dispatch returned.
        numbered: the number of the address of each place among those that a plan computes.
    """

    def __init__(
        self, launched: Launched, places: dict[Path, Place], compiled: Any, numbered: dict[tuple[int, int], int]
    ) -> None:
        without = tuple([_without(argument, (n,), places) for n, argument in enumerate(launched.arguments)])
        self.launched = launched._replace(arguments=without)
        self.places = places
        self.numbers: dict[str, tuple[int, ...]] = {}  # in the place of those of the first launch
        self.flat: FlatLaunch | None = None
        if compiled is None:
            return
        kernel = launched.kernel
        constants = {name: value for name, value in launched.settings.items() if name in kernel.arg_names}
        bound = _signature(kernel.fn).bind(*without, **constants)
        bound.apply_defaults()
        self.arguments = [_addressed(argument) for argument in bound.arguments.values()]
        self.grid = (*launched.grid, *(1,) * (3 - len(launched.grid)))
        self.run, self.function, self.metadata = compiled.run, compiled.function, compiled.packed_metadata
        self.slots = [(path, numbered[place.base, place.offset]) for path, place in places.items()]
        described = self.arguments.copy()
        for path, number in self.slots:
            described[path[0]] = _replaced(described[path[0]], path[1:], Slot(number))
        for index, what in launched.numbers.items():
            described[index] = tuple([Varying(what, n, value) for n, value in enumerate(described[index])])
        self.flat = flat(compiled, self.grid, described)

    @property
    def direct(self) -> Callable[[int, list[int]], None]:
        """``(stream, addresses) -> None``: launches the compiled kernel on a stream, without Triton's dispatch."""
        return self._nested if self.flat is None else self.flat

    def _nested(self, stream: int, addresses: list[int]) -> None:
        arguments = self.arguments.copy()
        for index, what in self.launched.numbers.items():
            arguments[index] = self.numbers.get(what, arguments[index])
        for path, number in self.slots:
            value: Any = Address(addresses[number]) if path[-1] == DESCRIBED else addresses[number]
            arguments[path[0]] = value if len(path) == 1 else _replaced(arguments[path[0]], path[1:], value)
        self.run(*self.grid, stream, self.function, self.metadata, None, None, None, *arguments)

    def dispatched(self, tensors: list[Tensor]) -> None:
        """Launch through Triton's dispatch. ``tensors``: at the beginning of each numbered piece of memory."""
        arguments = list(self.launched.arguments)
        for index, what in self.launched.numbers.items():
            arguments[index] = self.numbers.get(what, arguments[index])
        for path, place in self.places.items():
            arguments[path[0]] = _replaced(arguments[path[0]], path[1:], place.of(tensors))
        self.launched._replace(arguments=tuple(arguments)).dispatch()

    def bound(self, numbers: dict[str, tuple[int, ...]]) -> Launch:
        """A launch with other integers in the places of its `Numbers`, and all else as it is."""
        if not self.launched.numbers:
            return self
        made = object.__new__(Launch)
        made.__dict__.update(self.__dict__)
        made.numbers = numbers
        made.flat = None if self.flat is None else self.flat.bound(numbers)
        return made


_signature = lru_cache(maxsize=64)(inspect.signature)


class Address:
    """What Triton's launcher takes in the place of a tensor, of which it reads the address alone."""

    __slots__ = ("address",)

    def __init__(self, address: int) -> None:
        self.address = address

    def data_ptr(self) -> int:
        """The address, in the place of that of a tensor."""
        return self.address


def tensors_in(argument: Any, path: Path) -> list[tuple[Path, Tensor]]:
    """The tensors in an argument, each with its path."""
    if isinstance(argument, Tensor):
        return [(path, argument)]
    if isinstance(argument, tuple):
        return [found for n, part in enumerate(argument) for found in tensors_in(part, (*path, n))]
    return [((*path, DESCRIBED), argument.base)] if isinstance(getattr(argument, "base", None), Tensor) else []


def _without(argument: Any, path: Path, places: dict[Path, Place]) -> Any:
    """An argument without the tensors of a call, which a plan must not keep alive."""
    for at, _ in tensors_in(argument, path):
        if at in places:
            argument = _replaced(argument, at[len(path) :], None)
    return argument


def _addressed(argument: Any) -> Any:
    """An argument with addresses in the place of tensors, which `Launch.launched` keeps alive."""
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    return tuple(map(_addressed, argument)) if isinstance(argument, tuple) else argument


def _replaced(argument: Any, path: Path, value: Any) -> Any:
    """An argument with another value at a path."""
    if not path:
        return value
    if path[0] == DESCRIBED:
        copied = object.__new__(type(argument))
        copied.__dict__.update(argument.__dict__)
        copied.base = value
        return copied
    parts = list(argument)
    parts[path[0]] = _replaced(parts[path[0]], path[1:], value)
    return tuple(parts) if type(argument) is tuple else type(argument)(*parts)  # a named tuple
