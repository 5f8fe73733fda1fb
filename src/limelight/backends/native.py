"""Our C++ kernels on CPUs: the library in ``native/``, reached through its plain C interface.

The library knows nothing of Python or PyTorch: it is given pointers, sizes and strides, packed here into one ``bytes``
object with the layout of ``ll_call`` in ``native/include/limelight.h``, where the meaning of every word is written.
Nothing is kept from call to call, and the interpreter lock is released while the kernels run.

``LIMELIGHT_ISA`` names an instruction set (``generic``, ``avx2``, ``avx512``) to use instead of the best one.
"""

from __future__ import annotations

import ctypes
import math
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..forms.layouts import Aligned
from ..forms.lowering import Lowered
from ..forms.observations import Observations, Observe
from ..forms.scores import ALiBi, Bias, RelativeBias, ScoreRule, SoftCap
from ..tensors import tracing
from ..tensors.shapes import PLAIN, check_tensor, extent
from . import memory as results
from .contract import BackendError, Call, Result, out_of_memory, unknown_positions

NAME = "native"
ABOUT = "C++ kernels on CPUs, memory linear in the length"

FILE = "liblimelight_native.so"
MOST_RULES = 8
FARTHEST_DISTANCE = 2**30  # the kernels count distances in 32 bits
MOST_DISTANCES = 2**24  # of a table of biases, unless queries and keys are more

_VERSION = 5
_INTERRUPTED = 3
# version, element, sizes; four tensors; logsumexp, sink, compare; scale, dropout; seed; threads; segments and spans
# (which follow); intervals; tile map; rules, observation
_CALL = struct.Struct("9q 20q 3q 2d Q q 4q 6q 6q 3q")
_RULE = struct.Struct("q 2d 5q q")
_OBSERVATION = struct.Struct("24q")
# output and its gradient; logsumexp and its gradient; gradients of query, key, value; sink, compare; then the rules,
# and which of them are not cleared
_GRADIENTS = struct.Struct("10q 2q 15q 2q")
_RULE_GRADIENT = struct.Struct("5q")
_SEGMENT = struct.Struct("8q")
_SEGMENT_BYTES, _SPAN_BYTES = 64, 80
_BIAS, _ALIBI, _DISTANCE_TABLE, _SOFTCAP = range(4)
_SHORT_STRIDE = 2**14  # elements
_NONE: tuple[int, ...] = (0,) * 6
_NO_RULES = bytes(_RULE_GRADIENT.size * MOST_RULES)
_ELEMENTS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Whatever stands beside query, key, value and output is in the dtype of sums. Device and dtype are said each time:
# torch's defaults are the user's.
_NUMBERS: dict[torch.dtype, Any] = {
    dtype: {"dtype": torch.float64 if dtype is torch.float64 else torch.float32, "device": "cpu"} for dtype in _ELEMENTS
}


def _load() -> tuple[Any, str]:
    """The library, or why there is none."""
    from .. import __path__ as folders  # more than one in an editable install

    found = [path for path in (Path(folder) / FILE for folder in folders) if path.is_file()]
    if not found:
        return None, (
            f"the native library ({FILE}) was not built: install a C++ compiler (apt-get install g++) and reinstall "
            "Limelight; without it CPU attention takes memory for every score"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"the native library cannot be loaded: {error}"
    if not hasattr(library, "ll_interruption"):
        return None, f"the native library ({found[0]}) is of an older version: reinstall Limelight"
    library.ll_forward.argtypes = [ctypes.c_char_p]
    library.ll_backward.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
    library.ll_select_isa.argtypes = [ctypes.c_char_p]
    for name in ("products", "norm_forward", "norm_backward", "gate_values", "rotate", "matmul_values"):
        getattr(library, f"ll_{name}").argtypes = [ctypes.c_char_p]
    library.ll_steps.argtypes = [ctypes.c_char_p, ctypes.c_int64]
    for name in ("ll_error_message", "ll_isa_name", "ll_isa_list"):
        getattr(library, name).restype = ctypes.c_char_p
    library.ll_measure_peak.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_double]
    library.ll_measure_peak.restype = ctypes.c_double
    names = ("PyGILState_Ensure", "PyGILState_Release", "PyErr_CheckSignals", "PyErr_Fetch")
    library.ll_lend_signals(*[ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p) for name in names])
    return library, ""


_library, _missing = _load()


def checked(result: int) -> None:
    """Raise what the library complains of, or what a signal handler raised while it ran."""
    if result == _INTERRUPTED:
        exception = (ctypes.c_void_p * 3)()
        _library.ll_interruption(exception)
        restore = ctypes.pythonapi["PyErr_Restore"]
        restore.argtypes, restore.restype = [ctypes.c_void_p] * 3, None
        restore(*exception)  # raises it
    if result:
        said = _library.ll_error_message().decode()
        if said.startswith("out of memory"):
            raise out_of_memory("the scratch of the kernels", said)
        raise BackendError(f"backend 'native': {said}.")


def status() -> str:
    """Whether the backend is there, with which instruction set, or what is missing and what that costs."""
    if _library is None:
        return f"not there: {_missing}"
    isa = _library.ll_isa_name().decode()
    if not isa:
        return f"not usable: {_library.ll_error_message().decode()}"
    # `wide` serves tests; nobody would choose it.
    others = [name for name in _library.ll_isa_list().decode().split() if name not in (isa, "wide")]
    threads = "OpenMP" if _library.ll_has_openmp() else "one thread, since it was built without OpenMP"
    return f"{ABOUT}; instruction set {isa} (also: {', '.join(others) or 'none'}), {threads}"


def reasons_against(call: Call) -> list[str]:
    """Why the backend cannot serve the call."""
    reasons = [_missing] if _library is None else []
    query = call.query
    if not query.is_cpu:
        reasons.append(f"the tensors lie on {query.device}; it runs on the CPU")
    if query.dtype not in _ELEMENTS:
        reasons.append(f"the dtype is {query.dtype}; it computes {', '.join(map(str, _ELEMENTS))}")
    if not (type(query) in PLAIN and type(call.key) in PLAIN and type(call.value) in PLAIN):
        reasons.append("a tensor subclass is among query, key and value; it reads plain memory")
    if call.sink is not None or call.scores or call.compare is not None or call.observe is not None:
        reasons += _reasons_against_operands(call)
    if call.layout is not None:
        reasons += unknown_positions(call)
    if call.scores:
        reasons += reasons_against_rules(call.scores)
    # Under a transform the positions may not be known yet: then `forward` asks.
    if reasons or type(call.layout) is not Aligned or tracing.is_transformed():
        return reasons
    return _reasons_against_distances(call)


def _reasons_against_distances(call: Call) -> list[str]:
    """Why the distances of a call cannot be told apart or tabled; only `Aligned` puts queries far from their keys."""
    kinds = [type(rule) for rule in call.scores]
    tabled = RelativeBias in kinds
    if not (tabled or ALiBi in kinds or (call.observe is not None and call.observe.distance)):
        return []
    low, high = _distances(call)
    if max(-low, high) > FARTHEST_DISTANCE:
        return [f"it knows distances up to 2^30, but those of {call.layout!r} run from {low} to {high}"]
    most = max(MOST_DISTANCES, call.shapes.Lq + call.shapes.Lk)
    if tabled and high - low >= most:
        return [f"it would table a bias for each distance from {low} to {high}; it tables {most:,}"]
    return []


def _reasons_against_operands(call: Call) -> list[str]:
    """Why the tensors beside query, key and value cannot be read."""
    found = call.operands
    if call.observe is not None:
        found += call.observe.tensors()
    for tensor in found:
        if type(tensor) not in PLAIN:
            break
    else:
        return []
    return ["a tensor subclass is among the sink, the score rules' tensors and what is observed; it reads plain memory"]


def reasons_against_rules(rules: Sequence[object]) -> list[str]:
    """Why the backend cannot serve calls with these score rules."""
    reasons = [f"it does not know the score rule {rule!r}" for rule in rules if type(rule) not in _RULES]
    if len(rules) > MOST_RULES:
        reasons.append(f"there are {len(rules)} score rules; it takes {MOST_RULES}")
    return reasons


def memory(call: Call) -> int:
    """Bytes taken beside inputs and outputs: scratch of each thread, sums over queries when observing, and keys and
    values once more where they cannot be read as they lie.
    """
    B, _, Hkv, Lq, Lk, D, Dv = call.shapes
    number = 8 if call.query.dtype is torch.float64 else 4
    scratch = number * (48 * D + 128 * 48 + 176 * (Dv + 16)) + 128 * 48
    seen = 0 if call.observe is None else 2 * number * B * call.shapes.Hq * Lq + min(2**26, 64 * Lk)
    whole = Dv % 16 == 0 and call.value.stride(2) == Dv
    copied = number * (D + Dv) if call.query.dtype.itemsize < 4 else 0 if whole else number * (Dv + 16)
    return torch.get_num_threads() * scratch + seen + B * Hkv * Lk * copied


def forward(call: Call) -> Result:
    """Compute the call.

    Raises:
        BackendError: the library refuses, for instance because ``LIMELIGHT_ISA`` names what the machine cannot run.
    """
    B, Hq, _, Lq, _, D, Dv = call.shapes
    query, query_rows = _readable("query", call.query)
    _key, key_rows = _readable("key", call.key)  # a copy lives as long as its variable
    _value, value_rows = _readable("value", call.value)
    lowered = call.lowered
    far = _reasons_against_distances(call) if type(call.layout) is Aligned else None
    if far:
        raise BackendError(f"backend 'native', inside a transform: {'; '.join(far)}. Name backend='reference'.")
    covered = call.layout is None or lowered.covers
    # In the query's own order of memory: (B, L, H, D) underneath when heads were split without a copy.
    output = results.empty_like(query) if Dv == D else results.empty((B, Hq, Lq, Dv), query.dtype)
    output_rows = (output.data_ptr(), *output.stride())
    if output_rows[4] != 1:
        output = results.empty((B, Hq, Lq, Dv), query.dtype)
        output_rows = (output.data_ptr(), Hq * Lq * Dv, Lq * Dv, Dv, 1)
    if not covered:
        output.zero_()
    kept: list[Any] = []  # what the addresses in the call point to
    observation, seen = 0, None
    if call.observe is not None:
        seen, words = _observation(call.observe, call, kept)
        observation = _address(words, kept)
    logsumexp = _logsumexp(call, covered) if call.logsumexp else None
    # Without queries there is nothing to compute, and without a width of values nothing unless weights are asked for.
    if query_rows[0] and (output_rows[0] or logsumexp is not None or seen is not None):
        words = _words(call, query_rows + key_rows + value_rows + output_rows, _pointer(logsumexp), observation, kept)
        checked(_library.ll_forward(words))
    if seen is not None:
        assert call.observe is not None
        _finish(seen, call.observe, lowered)
    return Result(output, logsumexp, seen)


def noted(call: Call, output: Tensor, kept: list[Any]) -> bytes:
    """``ll_call`` of a call without observations, which need not hold its inputs yet, into ``output``.

    ``kept`` is what the addresses in it point to beside the call's own tensors, whose last stride is 1.
    """
    if call.layout is not None and not call.lowered.covers:
        output.zero_()
    rows = (*_rows(call.query), *_rows(call.key), *_rows(call.value), *_rows(output))
    return _words(call, rows, 0, 0, kept)


def _words(call: Call, tensors: tuple[int, ...], logsumexp: int, observation: int, kept: list[Any]) -> bytes:
    """``ll_call``, with the segments and spans behind it."""
    lowered = call.lowered
    segments, spans = lowered.segments, lowered.spans or b""
    sink = compare = rules = 0
    if call.sink is not None:
        kept.append(_plain("sink", call.sink, call))
        sink = kept[-1].data_ptr()
    if call.compare is not None:
        kept.append(_plain("vector", call.compare.vector, call).expand(call.shapes.Hq, call.shapes.D).contiguous())
        compare = kept[-1].data_ptr()
    if call.scores:
        rules = _address(b"".join([_rule(rule, call, kept) for rule in call.scores]), kept)
    return (
        _CALL.pack(
            _VERSION, _ELEMENTS[call.query.dtype], *call.shapes, *tensors, logsumexp, sink, compare, call.scale,
            call.dropout,
            int(call.seed) & 0xFFFFFFFFFFFFFFFF if call.dropout else 0,
            torch.get_num_threads(),
            0, len(segments) // _SEGMENT_BYTES, 0, len(spans) // _SPAN_BYTES,
            *(_NONE if lowered.arrays is None else _intervals(lowered)),
            *(_NONE if lowered.tiles is None else _tiles(lowered)),
            rules, len(call.scores), observation,
        )
        + segments
        + spans
    )  # fmt: skip


def _logsumexp(call: Call, covered: bool) -> Tensor:
    """``(B, Hq, Lq)`` to be filled, as a query that belongs to no document has it."""
    B, Hq, _, Lq, _, _, _ = call.shapes
    numbers = _NUMBERS[call.query.dtype]
    if covered:
        return torch.empty((B, Hq, Lq), **numbers)
    none = torch.full((B, Hq, Lq), -torch.inf, **numbers)
    return none if call.sink is None else none.copy_(_plain("sink", call.sink, call)[:, None])


# --- Backward --------------------------------------------------------------------------------------------------------


def reasons_against_backward(call: Call) -> list[str]:
    """Why `backward` cannot serve a call that `forward` serves: there is no such call."""
    return []


def backward(
    call: Call,
    output: Tensor,
    logsumexp: Tensor,
    grad_output: Tensor,
    grad_logsumexp: Tensor | None,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, sink and the tensors of the score rules: see `contract.Differentiable`."""
    numbers = _NUMBERS[call.query.dtype]
    query, query_rows = _readable("query", call.query)
    key, key_rows = _readable("key", call.key)
    value, value_rows = _readable("value", call.value)
    output, output_rows = _readable("output", output)
    grad_output, grad_rows = _readable("grad_output", _in_dtype(grad_output, output.dtype))
    if logsumexp.dtype is not numbers["dtype"] or not logsumexp.is_contiguous() or not logsumexp.data_ptr():
        logsumexp = _plain("logsumexp", logsumexp, call)
    if grad_logsumexp is not None:
        grad_logsumexp = _plain("grad_logsumexp", grad_logsumexp, call)
    # Keys and queries that belong to no document are not written; nor is anything where there are no queries.
    cleared = call.layout is not None or not query_rows[0]
    found: list[Tensor | None] = [
        _room(tensor, cleared) if asked else None for tensor, asked in zip((query, key, value), wanted, strict=False)
    ]
    shares = iter(wanted[3:])
    sink = torch.zeros(call.shapes.scores[:3], **numbers) if call.sink is not None and next(shares) else None
    sums: list[Tensor | None] = []
    uncleared = 0
    for number, rule in enumerate(call.scores):
        if type(rule) is SoftCap or not next(shares):
            sums.append(None)
        elif _written_whole(rule, call):
            sums.append(results.empty(call.shapes.scores, numbers["dtype"]))
            uncleared |= 1 << number
        else:
            sums.append(_gradient(rule, call))
    vectors = None
    if call.compare is not None and next(shares):
        vectors = torch.zeros((*call.shapes.scores[:3], call.shapes.D), **numbers)
    kept: list[Any] = []
    gradients = _GRADIENTS.pack(
        *output_rows, *grad_rows,
        logsumexp.data_ptr(), _pointer(grad_logsumexp),
        *_rows(found[0]), *_rows(found[1]), *_rows(found[2]), _pointer(sink), _pointer(vectors),
    )  # fmt: skip
    rules = b"".join([_RULE_GRADIENT.pack(*_place(tensor)) for tensor in sums])
    if query_rows[0]:
        words = _words(call, (*query_rows, *key_rows, *value_rows, 0, 0, 0, 0, 1), 0, 0, kept)
        where = gradients + rules + _NO_RULES[len(rules) :] + uncleared.to_bytes(8, sys.byteorder)
        checked(_library.ll_backward(words, where))
    if call.sink is not None:
        found.append(None if sink is None else sink.sum((0, 2)).to(call.sink.dtype))
    for rule, total in zip(call.scores, sums, strict=True):
        if type(rule) is not SoftCap:
            tensor = rule.tensors()[0]
            found.append(None if total is None else _REDUCED[type(rule)](rule, total, call).to(tensor.dtype))
    if call.compare is not None:
        vector = call.compare.vector
        found.append(None if vectors is None else vectors.sum((0, 2)).sum_to_size(vector.shape).to(vector.dtype))
    return tuple(found)


def _rows(tensor: Tensor | None) -> tuple[int, ...]:
    """Address and strides, the last one 1 also where there is one element only."""
    return (0,) * 5 if tensor is None else (tensor.data_ptr(), *tensor.stride()[:3], 1)


def _place(tensor: Tensor | None) -> tuple[int, ...]:
    """Address and strides; a dimension of size 1 is one that sums."""
    if tensor is None:
        return (0,) * 5
    return (
        tensor.data_ptr(),
        *(0 if size == 1 else step for size, step in zip(tensor.shape, tensor.stride(), strict=True)),
    )


def _dimensions(rule: Bias) -> list[int]:
    """Of its tensor, all four."""
    return [1] * (4 - rule.tensor.dim()) + list(rule.tensor.shape)


def _written_whole(rule: ScoreRule, call: Call) -> bool:
    """Whether the gradient is that of a bias of all pairs, each of which the library writes. More than is kept would be
    memory that the system has cleared anyway.
    """
    shape = call.shapes.scores
    return (
        isinstance(rule, Bias)
        and call.layout is None
        and min(shape[2:]) > 1
        and _dimensions(rule) == list(shape)
        and math.prod(shape) * _NUMBERS[call.query.dtype]["dtype"].itemsize <= results.MOST
    )


def _gradient(rule: ScoreRule, call: Call) -> Tensor:
    """Room for what the library adds for a rule's tensor: zeros."""
    B, Hq, Lq, _ = call.shapes.scores
    shape = [B, Hq, Lq, 1]  # each query's share, to which chunks of keys add in turn
    if isinstance(rule, Bias) and _dimensions(rule)[-1] != 1:
        shape = _dimensions(rule)
    elif isinstance(rule, RelativeBias):
        low, high = _distances(call)
        shape = [B, Hq, 1, high - low + 1]
    return results.zeros(shape, _NUMBERS[call.query.dtype]["dtype"])


def _of_bias(rule: Bias, total: Tensor, call: Call) -> Tensor:
    return total.sum_to_size(_dimensions(rule)).reshape(rule.tensor.shape)


def _of_slopes(rule: ALiBi, total: Tensor, call: Call) -> Tensor:
    return total.sum((2, 3)).sum_to_size(rule.slopes.shape)


def _of_table(rule: RelativeBias, total: Tensor, call: Call) -> Tensor:
    low, high = _distances(call)
    buckets = rule.bucket_of(torch.arange(low, high + 1, device="cpu"))
    heads = total.sum((0, 2))
    return heads.new_zeros(len(heads), rule.table.shape[1]).index_add_(1, buckets, heads).sum_to_size(rule.table.shape)


_REDUCED: dict[type[ScoreRule], Callable[[Any, Tensor, Call], Tensor]] = {
    Bias: _of_bias,
    ALiBi: _of_slopes,
    RelativeBias: _of_table,
}


# --- Tensors ---------------------------------------------------------------------------------------------------------


def _readable(name: str, tensor: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The tensor, and its address and strides, the last one 1; copied only where it cannot be read as it lies.

    A storage that was freed is always noticed, one that was shrunk where strides are long: to look costs a short call
    a tenth of its time.
    """
    try:
        strides, address = tensor.stride(), tensor.data_ptr()
    except RuntimeError:  # it has no memory of its own
        strides, address = (), 0
    if (
        address
        and not tensor.is_neg()
        and (max(strides) < _SHORT_STRIDE or extent(tensor) <= tensor.untyped_storage().nbytes())
    ):
        if strides[3] == 1:
            return tensor, (address, *strides)
        tensor = tensor.clone(memory_format=torch.contiguous_format)
    else:
        tensor = _copied(name, tensor)
    _, H, L, D = tensor.shape
    return tensor, (tensor.data_ptr(), H * L * D, L * D, D, 1)


def _address_of(tensor: Tensor) -> int:
    """0 where a tensor has no elements, or no memory."""
    try:
        return tensor.data_ptr()
    except RuntimeError:
        return 0


def _copied(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy, by PyTorch, of a tensor that is lazily negated or zero, or lies otherwise.

    Raises:
        ArgumentError: it has no memory to be read.
    """
    check_tensor(name, tensor)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor.detach())


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _room(tensor: Tensor, cleared: bool) -> Tensor:
    """For the gradient of ``tensor``, in its order of memory where that has the numbers of a row side by side."""
    gradient = results.empty_like(tensor)
    if gradient.stride(3) != 1 and tensor.shape[3] != 1:
        gradient = results.empty(tensor.shape, tensor.dtype)
    return gradient.zero_() if cleared else gradient


def _plain(name: str, tensor: Tensor, call: Call) -> Tensor:
    """A small operand, contiguous, in the dtype of sums."""
    made = tensor.detach().to(**_NUMBERS[call.query.dtype]).contiguous()
    return made if made.data_ptr() and not made.is_neg() else _copied(name, made)


def _address(words: bytes, kept: list[Any]) -> int:
    buffer = ctypes.create_string_buffer(words, len(words))
    kept.append(buffer)
    return ctypes.addressof(buffer)


def _stride(array: NDArray[Any], axis: int) -> int:
    """In elements; 0 where the axis is broadcast."""
    return 0 if array.shape[axis] == 1 else array.strides[axis] // array.itemsize


def _intervals(lowered: Lowered) -> tuple[int, ...]:
    assert lowered.arrays is not None
    starts, ends = lowered.arrays.starts, lowered.arrays.ends
    strides = (starts.strides[0] // starts.itemsize, _stride(starts, 1), _stride(starts, 2))
    return (starts.ctypes.data, ends.ctypes.data, len(starts), *strides)


def _tiles(lowered: Lowered) -> tuple[int, ...]:
    assert lowered.tiles is not None
    state, bits = lowered.tiles.state, lowered.tiles.bits
    strides = (_stride(state, 0), _stride(state, 1), _stride(state, 2))
    return (state.ctypes.data, *strides, bits.ctypes.data, lowered.tiles.rows)


# --- Score rules -----------------------------------------------------------------------------------------------------


def _rule(rule: ScoreRule, call: Call, kept: list[Any]) -> bytes:
    """``ll_rule``: kind, two parameters, a tensor with its strides."""
    packed: bytes = _RULES[type(rule)](rule, call, kept)
    return packed


def _with_tensor(
    kind: int, parameters: tuple[float, float], tensor: Tensor, kept: list[Any], stored: bool = False
) -> bytes:
    kept.append(tensor)
    return _RULE.pack(kind, *parameters, tensor.data_ptr(), *tensor.stride(), stored)


def _bias(rule: Bias, call: Call, kept: list[Any]) -> bytes:
    """As it lies when it has the dtype of the query: it may be as large as all scores."""
    tensor = rule.tensor.detach()
    stored = tensor.dtype is call.query.dtype
    if not stored:
        tensor = tensor.to(**_NUMBERS[call.query.dtype])
    if tensor.is_neg() or not _address_of(tensor):
        tensor = _copied("tensor", tensor)
    return _with_tensor(_BIAS, (0.0, 0.0), tensor.expand(call.shapes.scores), kept, stored)


def _alibi(rule: ALiBi, call: Call, kept: list[Any]) -> bytes:
    B, Hq, _, _ = call.shapes.scores
    slopes = _plain("slopes", rule.slopes, call).expand(B, Hq)[:, :, None, None].expand(B, Hq, 1, 1)
    return _with_tensor(_ALIBI, (0.0, 0.0), slopes, kept)


def _relative_bias(rule: RelativeBias, call: Call, kept: list[Any]) -> bytes:
    """The bias at every distance that occurs: ``O(Lq + Lk)`` numbers for each head."""
    low, high = _distances(call)
    biases = _plain("table", rule.over(low, high), call)
    biases = biases.expand(call.shapes.Hq, biases.shape[1])[None, :, None, :]
    return _with_tensor(_DISTANCE_TABLE, (-low, high - low + 1), biases, kept)


def _distances(call: Call) -> tuple[int, int]:
    """The smallest and the largest distance that occur."""
    if len(call.lowered.segments) == _SEGMENT_BYTES:  # the common one, told quickly
        _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = _SEGMENT.unpack(
            call.lowered.segments
        )
        low = key_begin + key_offset - query_end + 1 - query_offset
        return low, max(low, key_end - 1 + key_offset - query_begin - query_offset)
    table = call.lowered.segment_table
    if not len(table):
        return 0, 0
    _, query_begin, query_end, key_begin, key_end, query_offset, key_offset, _ = table.T
    low = int((key_begin + key_offset - query_end + 1 - query_offset).min())
    return low, max(low, int((key_end - 1 + key_offset - query_begin - query_offset).max()))


def _soft_cap(rule: SoftCap, call: Call, kept: list[Any]) -> bytes:
    return _RULE.pack(_SOFTCAP, rule.limit, 0.0, 0, 0, 0, 0, 0, 0)


_RULES: dict[type[ScoreRule], Callable[[Any, Call, list[Any]], bytes]] = {
    Bias: _bias,
    ALiBi: _alibi,
    RelativeBias: _relative_bias,
    SoftCap: _soft_cap,
}


# --- Observations ----------------------------------------------------------------------------------------------------


def _observation(observe: Observe, call: Call, kept: list[Any]) -> tuple[Observations, bytes]:
    """What the library shall fill, as a query that belongs to no document has it, and ``ll_observation``."""
    B, Hq, Lq, Lk = call.shapes.scores
    heads = list(range(Hq)) if observe.heads is None else list(observe.heads)
    H = len(heads)
    seen = Observations()
    numbers = _NUMBERS[call.query.dtype]
    if observe.logsumexp:
        seen.logsumexp = torch.full((B, H, Lq), -torch.inf, **numbers)
        if call.sink is not None:
            seen.logsumexp.copy_(_plain("sink", call.sink, call)[heads][:, None])
    if observe.max_score:
        seen.max_score = torch.full((B, H, Lq), -torch.inf, **numbers)
    if observe.max_weight:
        seen.max_weight = torch.zeros(B, H, Lq, **numbers)
    if observe.entropy:
        seen.entropy = torch.zeros(B, H, Lq, **numbers)
    if observe.distance:
        seen.distance = torch.zeros(B, H, Lq, **numbers)
    if observe.top:
        seen.top_weights = torch.zeros(B, H, Lq, observe.top, **numbers)
        seen.top_keys = torch.full((B, H, Lq, observe.top), -1, dtype=torch.int64, device="cpu")
    if observe.received:
        seen.received = torch.zeros(B, H, Lk, **numbers)
    features = rows = pairs = None
    if observe.features is not None:
        features = _plain("features", observe.features, call)
        seen.features = torch.zeros(B, H, Lq, features.shape[1], **numbers)
    if observe.rows is not None:
        rows = _sorted(torch.as_tensor(observe.rows, dtype=torch.int64, device="cpu").reshape(-1))
        seen.rows = torch.zeros(B, H, len(rows), Lk, **numbers)
    if observe.pairs is not None:
        pairs = _sorted(torch.as_tensor(observe.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
        seen.pairs = torch.zeros(B, H, len(pairs), **numbers)
    bq, bk = observe.blocks or (0, 0)
    if observe.blocks is not None:
        seen.blocks = torch.zeros(B, H, -(-Lq // bq), -(-Lk // bk), **numbers)
    chosen = torch.tensor(heads, dtype=torch.int64, device="cpu")
    kept += [chosen, features, rows, pairs]
    words = _OBSERVATION.pack(
        chosen.data_ptr(), H,
        _pointer(seen.logsumexp), _pointer(seen.max_score), _pointer(seen.max_weight),
        _pointer(seen.entropy), _pointer(seen.distance),
        observe.top, _pointer(seen.top_weights), _pointer(seen.top_keys),
        _pointer(seen.received),
        _pointer(features), 0 if features is None else features.shape[1], 0 if features is None else features.stride(0),
        _pointer(seen.features),
        _pointer(rows), 0 if rows is None else len(rows), _pointer(seen.rows),
        _pointer(pairs), 0 if pairs is None else len(pairs), _pointer(seen.pairs),
        bq, bk, _pointer(seen.blocks),
    )  # fmt: skip
    return seen, words


def _finish(seen: Observations, observe: Observe, lowered: Lowered) -> None:
    """Chosen rows and pairs back in the caller's order; the counts, which follow from the pattern alone."""
    if seen.rows is not None:
        order = _order(torch.as_tensor(observe.rows, dtype=torch.int64, device="cpu").reshape(-1))
        seen.rows = seen.rows[:, :, order.argsort()]
    if seen.pairs is not None:
        order = _order(torch.as_tensor(observe.pairs, dtype=torch.int64, device="cpu").reshape(-1, 2))
        seen.pairs = seen.pairs[:, :, order.argsort()]
    if observe.received:
        seen.received_by = _of_heads(lowered.seen_by(), observe.heads)
    if observe.blocks is not None:
        seen.block_pairs = _of_heads(lowered.block_pairs(*observe.blocks), observe.heads)


def _order(indices: Tensor) -> Tensor:
    return (indices if indices.dim() == 1 else indices[:, 0]).argsort(stable=True)


def _sorted(indices: Tensor) -> Tensor:
    """By query: the library looks for those of a tile by bisection."""
    return indices[_order(indices)].contiguous()


def _of_heads(counts: NDArray[np.int64], heads: tuple[int, ...] | None) -> Tensor:
    found = torch.from_numpy(counts)
    return found if heads is None or found.shape[1] == 1 else found[:, list(heads)]


def _pointer(tensor: Tensor | None) -> int:
    """0 for an empty tensor too: there is nothing to write."""
    return 0 if tensor is None else tensor.data_ptr()
