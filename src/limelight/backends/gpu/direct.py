"""Direct launches: the arguments of a compiled kernel as the driver takes them, flat.

At every launch, Triton's launcher flattens nested tuples, leaves out what was a constant of the compilation, and
encodes descriptors of tensors. Where a plan repeats a launch, all this is known but addresses. `flat` does it once, by
the signature of the compiled kernel, and a launch is one call of the launcher's C function. It is written for the
launcher of one version of Triton; kernels of another are launched through it as it is (`launching.Launch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any, NamedTuple

from . import compatibility

VERSION = (3, 7)  # of the launcher


class Slot(NamedTuple):
    """In the place of an address: its number among those of a plan."""

    number: int


class Varying(NamedTuple):
    """In the place of an integer: which of the integers ``what`` it is (`launching.Numbers`)."""

    what: str
    place: int
    value: int


class FlatLaunch:
    """A call of the launcher's C function.

    Args:
        function: the C function.
        grid: programs in each of three dimensions.
        fixed: its arguments between the stream and those of the kernel.
        arguments: those of the kernel; a `Slot` in the place of addresses, a `Varying` in that of other integers that
            change.
        encoded: by the index of an argument, how a descriptor is encoded: number of the address, all that follows it.
        encode: makes a descriptor.
    """

    def __init__(
        self, function: Any, grid: tuple[int, ...], fixed: tuple[Any, ...], arguments: list[Any],
        encoded: dict[int, tuple[int, tuple[Any, ...]]], encode: Any,
    ) -> None:  # fmt: skip
        self.function, self.grid, self.fixed, self.encode = function, grid, fixed, encode
        self.runs = _runs([(n, x.number) for n, x in enumerate(arguments) if type(x) is Slot])
        self.varying = [(n, x.what, x.place) for n, x in enumerate(arguments) if type(x) is Varying]
        self.encoded = [(n, *how) for n, how in encoded.items()]
        self.arguments = [x.value if type(x) is Varying else x for x in arguments]

    def __call__(self, stream: int, addresses: list[int]) -> None:
        """Launch on a stream. ``addresses``: by number."""
        arguments = self.arguments.copy()
        for first, last, get in self.runs:
            arguments[first:last] = get(addresses)
        for index, number, how in self.encoded:
            arguments[index] = self.encode(addresses[number], *how)
        self.function(*self.grid, stream, *self.fixed, arguments)

    def bound(self, numbers: dict[str, tuple[int, ...]]) -> FlatLaunch:
        """A launch with other integers in the places of those that change, and all else as it is."""
        if not self.varying:
            return self
        made = object.__new__(FlatLaunch)
        made.__dict__.update(self.__dict__)
        made.arguments = self.arguments.copy()
        for index, what, n in self.varying:
            made.arguments[index] = numbers[what][n]
        return made


def _runs(slots: list[tuple[int, int]]) -> list[tuple[int, int, Callable[[list[int]], tuple[int, ...]]]]:
    """Addresses that follow one another: ``(first, last, function of all addresses that gives these)``."""
    runs: list[tuple[int, int, Callable[[list[int]], tuple[int, ...]]]] = []
    while slots:
        count = next((n for n, (index, _) in enumerate(slots) if index != slots[0][0] + n), len(slots))
        numbers = [number for _, number in slots[:count]]
        get: Any = itemgetter(*numbers) if count > 1 else itemgetter(slice(numbers[0], numbers[0] + 1))
        runs.append((slots[0][0], slots[0][0] + count, get))
        slots = slots[count:]
    return runs


def flat(compiled: Any, grid: tuple[int, ...], arguments: list[Any]) -> FlatLaunch | None:
    """The launch of a compiled kernel; ``None`` where its launcher is of another kind.

    Args:
        compiled: the kernel, as Triton's dispatch returns it.
        grid: programs in each of three dimensions.
        arguments: of the kernel, constants included, nested as in its source; with a `Slot` in the place of a tensor,
            and as the ``base`` of a descriptor.
    """
    launcher, source = compiled.run, getattr(compiled, "src", None)
    if compatibility.version() != VERSION or source is None or not hasattr(launcher, "kernel_signature"):
        return None
    if launcher.global_scratch_size or launcher.profile_scratch_size:
        return None
    from triton.backends.nvidia import driver
    from triton.runtime import driver as runtime

    descriptors = iter(getattr(compiled.metadata, "tensordesc_meta", None) or ())
    parameters: list[Any] = []
    encoded: dict[int, tuple[int, tuple[Any, ...]]] = {}
    for argument, kind in zip(arguments, source.signature.values(), strict=True):
        if isinstance(kind, str) and kind.startswith("tensordesc"):
            meta = next(descriptors, None)
            if meta is None or meta["fp4_padded"] or argument.round_f32_to_tf32 or type(argument.base) is not Slot:
                return None
            element = driver.TMA_DTYPE_DEVICE_TO_HOST[meta["elem_type"]]
            shape, strides, padding = argument.shape, argument.strides, int(argument.padding == "nan")
            how = meta["swizzle"], meta["elem_size"], element, meta["block_size"], shape, strides, padding
            encoded[len(parameters)] = argument.base.number, how
            parameters += [None, *shape, *strides]
        else:
            parameters += _parameters(argument, kind)
    if len(parameters) != len(launcher.kernel_signature):
        return None
    fixed = (
        compiled.function, launcher.launch_cooperative_grid, launcher.launch_pdl, compiled.packed_metadata,
        None, None, None,  # metadata and functions of a profiler
        None, None,  # scratch
        [driver.PyKernelArg(nested_tuple=None, type=driver.ARG_KERNEL)] * len(parameters), launcher.kernel_signature,
    )  # fmt: skip
    utilities = runtime.active.utils
    return FlatLaunch(utilities.launch, grid, fixed, parameters, encoded, utilities.fill_tma_descriptor_tiled)


def _parameters(argument: Any, kind: Any) -> Iterator[Any]:
    """What the driver is given of an argument: nothing of a constant, and all parts of a tuple."""
    if isinstance(kind, tuple):
        for part, of_part in zip(argument, kind, strict=True):
            yield from _parameters(part, of_part)
    elif kind != "constexpr":
        yield argument
