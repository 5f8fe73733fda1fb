"""The shared library of C++ kernels: loaded, compared with what Python expects of it, and called.

The one module that uses `ctypes`. The library has no Python and no PyTorch in it: it is given pointers, sizes and
strides, as the bytes of a structure (`structures`). The interpreter lock is released while the kernels run.

``LIMELIGHT_ISA`` names an instruction set (``generic``, ``avx2``, ``avx512``, ``avx512bf16``, ``amx``, ``neon``) to use
instead of the best one.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..contract import BackendError, out_of_memory
from .structures import Field, mismatch

FILE = "liblimelight_native.so"
#: `ll_element` of each dtype that the kernels compute.
ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}

_INTERRUPTED = 3
_INTERPRETER = ("PyGILState_Ensure", "PyGILState_Release", "PyErr_CheckSignals", "PyErr_Fetch")
# Names and types of arguments; the result is an int (zero, or an error number) unless it stands below.
_ARGUMENTS: dict[str, list[Any]] = {
    "ll_forward": [ctypes.c_char_p],
    "ll_backward": [ctypes.c_char_p, ctypes.c_char_p],
    "ll_product_forward": [ctypes.c_char_p],
    "ll_norm_forward": [ctypes.c_char_p],
    "ll_norm_backward": [ctypes.c_char_p],
    "ll_gate_forward": [ctypes.c_char_p],
    "ll_gate_backward": [ctypes.c_char_p],
    "ll_rotation_forward": [ctypes.c_char_p],
    "ll_sum_forward": [ctypes.c_char_p],
    "ll_matmul_forward": [ctypes.c_char_p],
    "ll_quantization_forward": [ctypes.c_char_p],
    "ll_replay": [ctypes.c_char_p, ctypes.c_int64],
    "ll_set_signal_functions": [ctypes.c_void_p] * 4,
    "ll_take_exception": [ctypes.c_void_p],
    "ll_error_message": [],
    "ll_isa_name": [],
    "ll_isa_list": [],
    "ll_select_isa": [ctypes.c_char_p],
    "ll_set_openmp": [ctypes.c_void_p],
    "ll_measure_peak": [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_double],
    "ll_use_huge_pages": [ctypes.c_void_p, ctypes.c_int64, ctypes.c_double],
    "ll_layout": [],
}


class _Field(ctypes.Structure):
    """``ll_field``."""

    _fields_ = (
        ("structure", ctypes.c_char_p),
        ("field", ctypes.c_char_p),
        ("offset", ctypes.c_int64),
        ("size", ctypes.c_int64),
        ("type", ctypes.c_int64),
    )


_RESULTS: dict[str, Any] = {
    "ll_error_message": ctypes.c_char_p,
    "ll_isa_name": ctypes.c_char_p,
    "ll_isa_list": ctypes.c_char_p,
    "ll_measure_peak": ctypes.c_double,
    "ll_use_huge_pages": ctypes.c_int64,
    "ll_layout": ctypes.POINTER(_Field),
    "ll_set_openmp": None,
    "ll_set_signal_functions": None,
    "ll_take_exception": None,
}


def _layout(library: Any) -> Iterator[Field]:
    """The structures and fields that a library was compiled with."""
    row = library.ll_layout()
    for n in range(10_000):
        found = row[n]
        if not found.structure:
            return
        yield Field(found.structure.decode(), (found.field or b"").decode(), found.offset, found.size, chr(found.type))


# The functions of `ll_openmp`, in its order.
_OPENMP = (
    "omp_in_parallel",
    "GOMP_parallel",
    "omp_get_thread_num",
    "__kmpc_fork_call",
    "__kmpc_push_num_threads",
    "__kmpc_global_thread_num",
)
#: Where PyTorch's wheels keep their OpenMP runtime; on Linux it is among the global symbols of the process.
_RUNTIMES = {"darwin": "lib/libomp.dylib", "win32": "lib/libiomp5md.dll"}


def _openmp() -> Any:
    """`ll_openmp` of the runtime that PyTorch has loaded; ``None`` where there is none with these functions."""
    if "backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    inside = _RUNTIMES.get(sys.platform)
    path = None if inside is None else Path(torch.__file__).parent / inside
    if path is not None and not path.is_file():
        return None  # another build of PyTorch: a search by name could load a second runtime
    runtime = ctypes.CDLL(None if path is None else str(path))
    found = [getattr(runtime, name, None) for name in _OPENMP]
    addresses = [None if function is None else ctypes.cast(function, ctypes.c_void_p).value for function in found]
    gnu, llvm = addresses[1:3], addresses[3:]
    if not addresses[0] or not (all(gnu) or all(llvm)):
        return None
    if not all(gnu):
        gnu = [None, None]
    return (ctypes.c_void_p * len(_OPENMP))(addresses[0], *gnu, *llvm)


def load() -> tuple[Any, str]:
    """The library, or the reason why there is none."""
    folders = sys.modules[__name__.partition(".")[0]].__path__  # more than one in an editable install
    found = [path for path in (Path(folder) / FILE for folder in folders) if path.is_file()]
    if not found:
        return None, (
            f"the native library ({FILE}) was not built: install a C++ compiler (apt-get install g++) and reinstall "
            "Limelight; without it the reference computes on CPUs, which is slower"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"the native library cannot be loaded: {error}"
    for name, arguments in _ARGUMENTS.items():
        if not hasattr(library, name):
            return None, f"the native library ({found[0]}) is of another version, without {name}: reinstall Limelight"
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, _RESULTS.get(name, ctypes.c_int)
    different = mismatch(_layout(library))
    if different:
        return None, f"the native library ({found[0]}) is of another version: {different}; reinstall Limelight"
    library.ll_set_openmp(_runtime)
    library.ll_set_signal_functions(*(ctypes.cast(getattr(ctypes.pythonapi, f), ctypes.c_void_p) for f in _INTERPRETER))
    return library, ""


_runtime = _openmp()
_library, _missing = load()


def available() -> bool:
    """Whether the library is there."""
    return _library is not None


def why_missing() -> str:
    """Why the library is not available; empty if it is."""
    return _missing


def layout() -> list[Field]:
    """The structures and fields that the library was compiled with."""
    return list(_layout(_library))


def instruction_set() -> str:
    """The instruction set in use: ``"avx2"``; empty where ``LIMELIGHT_ISA`` names one that this machine cannot run."""
    name: bytes = _library.ll_isa_name()
    return name.decode()


def instruction_sets() -> list[str]:
    """Those that this machine can run, the best first; none without the library."""
    return [] if _library is None else _library.ll_isa_list().decode().split()


def select_instruction_set(name: str | None) -> None:
    """Use an instruction set from now on; ``None`` for that of ``LIMELIGHT_ISA``, else the best.

    Raises:
        BackendError: the machine cannot run it.
    """
    check(_library.ll_select_isa(None if name is None else name.encode()))


def shares_threads() -> bool:
    """Whether calls run on the threads of PyTorch's OpenMP runtime; otherwise the library starts threads of its own."""
    return _runtime is not None


def peak(dtype: torch.dtype, threads: int, seconds: float, instruction_set: str | None = None) -> float:
    """GFLOP/s of independent multiply-adds in registers, summed over threads.

    Args:
        dtype: of the elements.
        threads: how many compute at once.
        seconds: how long each of them is measured.
        instruction_set: the one in use by default.

    Raises:
        BackendError: the machine cannot run that instruction set.
    """
    name = None if instruction_set is None else instruction_set.encode()
    found = float(_library.ll_measure_peak(name, ELEMENTS[dtype], threads, seconds))
    if found < 0:
        check(1)
    return found


def use_huge_pages(address: int, size: int, seconds: float) -> int | None:
    """Ask the system for huge pages in ``size`` bytes of memory; returns how many bytes were moved into some.

    What already lies there is moved until ``seconds`` are over. ``None`` where the system refuses; 0 where the library
    is missing.
    """
    moved = 0 if _library is None else int(_library.ll_use_huge_pages(address, size, seconds))
    return None if moved < 0 else moved


def error_message() -> str:
    """The error message of this thread's last failed call."""
    message: bytes = _library.ll_error_message()
    return message.decode()


def check(status: int) -> None:
    """Raise the error of a status that is not zero.

    Raises:
        BackendError: the library refused the call.
        torch.OutOfMemoryError: there was no memory for the scratch of the kernels.
        BaseException: whatever a signal handler raised while a call ran, for instance `KeyboardInterrupt`.
    """
    if status == _INTERRUPTED:
        exception = (ctypes.c_void_p * 3)()
        _library.ll_take_exception(exception)
        restore = ctypes.pythonapi["PyErr_Restore"]
        restore.argtypes, restore.restype = [ctypes.c_void_p] * 3, None
        restore(*exception)  # raises it
    if status:
        message = error_message()
        if message.startswith("out of memory"):
            raise out_of_memory("the scratch of the kernels", message)
        raise BackendError(f"backend 'native': {message}.")


def address(packed: bytes, kept: list[Any]) -> int:
    """The address of a copy of some bytes, which lives as long as ``kept``."""
    buffer = ctypes.create_string_buffer(packed, len(packed))
    kept.append(buffer)
    return ctypes.addressof(buffer)


def _function(name: str) -> Callable[..., None]:
    """A function of the library that is given bytes and raises instead of returning an error number."""
    if _library is None:

        def missing(*packed: bytes) -> None:
            """Raise: the library is missing."""
            raise BackendError(f"backend 'native': {_missing}.")

        return missing
    entry = getattr(_library, name)

    def call(*packed: bytes) -> None:
        """Call the function of ``native/include/limelight.h`` with the bytes of its structures."""
        if status := entry(*packed):
            check(status)

    return call


#: What limelight.h says of each of them; the arguments are the bytes of its structures.
forward = _function("ll_forward")
backward = _function("ll_backward")
product_forward = _function("ll_product_forward")
norm_forward = _function("ll_norm_forward")
norm_backward = _function("ll_norm_backward")
gate_forward = _function("ll_gate_forward")
gate_backward = _function("ll_gate_backward")
rotation_forward = _function("ll_rotation_forward")
matmul_forward = _function("ll_matmul_forward")
quantization_forward = _function("ll_quantization_forward")


def replay(packed: bytes) -> None:
    """Run captured operations in order: `structures.STEP` before the structure of each."""
    check(_library.ll_replay(packed, len(packed)))
