"""The structures of ``native/include/limelight.h``, each declared once, in the header's own words.

A call is passed as bytes, packed field by field: an address or a size in the wrong place would be read as another.
So `mismatch` compares the declarations with what the library reports of itself, before anything is called.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

VERSION = 8  # LL_VERSION
MAX_RULES = 8  # LL_MAX_RULES
MAX_MATRICES = 4  # LL_MAX_MATRICES

_CODES = {"int64_t": "q", "uint64_t": "Q", "double": "d"}  # of the module `struct`; P is a pointer, T a structure


class Field(NamedTuple):
    """A field of a structure, or with the name "" the structure as a whole, as the library reports it too."""

    structure: str
    name: str
    offset: int  # bytes
    size: int  # bytes
    type: str  # of an element: q, Q, d, P or T


class Structure:
    """A structure of the header.

    Args:
        name: its name in C.
        declaration: its fields in C, in the header's order.
        groups: parameters of `pack`, and the consecutive fields that each of them gives by one sequence.
        defaults: what `pack` writes to fields that are not given, instead of zero.
    """

    def __init__(
        self,
        name: str,
        declaration: str,
        groups: Mapping[str, str] | None = None,
        defaults: Mapping[str, int] | None = None,
    ) -> None:
        self.name = name
        self.fields: list[Field] = []
        codes: list[str] = []
        for line in filter(None, map(str.strip, declaration.split(";"))):
            kind, names = line.removeprefix("const ").split(maxsplit=1)
            for declared in names.split(", "):
                field, _, count = declared.rstrip("]").partition("[")
                codes.append(self._add(field, kind, int(count or 1)))
        self._struct = struct.Struct("".join(codes))
        self.size = self._struct.size
        self._initial = self._initial_values(groups or {}, defaults or {})
        _BY_NAME[name] = self

    def __repr__(self) -> str:
        return f"<structure {self.name} of {self.size} bytes>"

    @cached_property
    def pack(self) -> Callable[..., bytes]:
        """The bytes of a structure, from its fields by name; those that are not given are zero, as in C.

        An array, or a structure within, is given as a flat sequence of numbers.
        """
        return self._compile(f"*, {', '.join(f'{name}={name}' for name in self._initial)}")

    def unpack(self, packed: bytes) -> tuple[int | float, ...]:
        """All numbers in the bytes of a structure, in order."""
        return self._struct.unpack(packed)

    def _add(self, name: str, kind: str, count: int) -> str:
        """Append a field; its code in a format of the module `struct`."""
        start = self.fields[-1].offset + self.fields[-1].size if self.fields else 0
        if kind in _BY_NAME:
            inner = _BY_NAME[kind]
            self.fields.append(Field(self.name, name, start, inner.size * count, "T"))
            return inner._struct.format * count
        code = "P" if kind.endswith("*") else _CODES[kind]
        self.fields.append(Field(self.name, name, start, 8 * count, code))
        return code * count

    def packer(self, *names: str) -> Callable[..., bytes]:
        """`pack` for calls that must be short: a function of these fields alone, by position, in this order."""
        return self._compile(", ".join(names))

    def _compile(self, parameters: str) -> Callable[..., bytes]:
        """A function compiled for these fields, as `typing.NamedTuple` does it: a call costs that of `struct`."""
        values = [f"*{name}" if isinstance(initial, tuple) else name for name, initial in self._initial.items()]
        source = f"lambda {parameters}: pack({', '.join(values)})"
        made: Callable[..., bytes] = eval(source, {"pack": self._struct.pack, **self._initial})
        return made

    def _initial_values(self, groups: Mapping[str, str], defaults: Mapping[str, int]) -> dict[str, Any]:
        """What each parameter of `pack` is when it is not given."""
        spread = {field.name: field.size // 8 for field in self.fields if field.size > 8}
        listed = ", ".join(field.name for field in self.fields)
        for group, members in groups.items():
            assert members in listed, f"{self.name}: {members} are no consecutive fields"
            listed = listed.replace(members, group)
            spread[group] = members.count(",") + 1
        return {name: (0,) * spread[name] if name in spread else defaults.get(name, 0) for name in listed.split(", ")}

    def table(self) -> list[Field]:
        """The structure as a whole, then its fields: what the library reports of it."""
        return [Field(self.name, "", 0, self.size, "T"), *self.fields]


_BY_NAME: dict[str, Structure] = {}


def declared() -> list[Field]:
    """All structures and their fields, in the header's order."""
    return [field for structure in _BY_NAME.values() for field in structure.table()]


def mismatch(reported: Iterable[Field]) -> str:
    """The first field in which ``reported`` differs from what is declared here, in words; empty where none does."""
    ours = {(field.structure, field.name): field for field in declared()}
    for field in reported:
        found = ours.pop((field.structure, field.name), None)
        if found != field:
            return f"{_shown(field)} in the library, and {_shown(found)} in Python"
    return f"{_shown(next(iter(ours.values())))} in Python, and missing in the library" if ours else ""


def _shown(field: Field | None) -> str:
    if field is None:
        return "missing"
    name = f"{field.structure}.{field.name}" if field.name else field.structure
    return f"`{name}` has {field.size} bytes of type {field.type} at {field.offset}"


TENSOR = Structure("ll_tensor", "void* data; int64_t strides[4]")
SEGMENT = Structure(
    "ll_segment",
    """int64_t row;
    int64_t query_begin, query_end;
    int64_t key_begin, key_end;
    int64_t query_offset, key_offset;
    int64_t dropout_row;
    int64_t page_offset;
    int64_t whole_queries, keys_before""",
)
PAGES = Structure("ll_pages", "const int32_t* table; int64_t length; int64_t count, size")
SPAN = Structure(
    "ll_span",
    """int64_t query_from, query_to;
    int64_t start, start_offset;
    int64_t chunk, chunk_start;
    int64_t end, end_offset;
    int64_t chunk_end, reserved""",
)
INTERVALS = Structure(
    "ll_intervals",
    """const int32_t* starts;
    const int32_t* ends;
    int64_t count;
    int64_t interval_stride, row_stride, head_stride""",
)
TILE_MAP = Structure(
    "ll_tile_map",
    """const int32_t* state;
    int64_t row_stride, head_stride, query_stride;
    const uint64_t* bits;
    int64_t bit_rows""",
)
RULE = Structure("ll_rule", "int64_t kind; double parameters[2]; ll_tensor tensor; int64_t stored")
OBSERVATION = Structure(
    "ll_observation",
    """const int64_t* heads;
    int64_t head_count;
    void* logsumexp;
    void* max_score;
    void* max_weight;
    void* entropy;
    void* distance;
    int64_t top;
    void* top_weights;
    int64_t* top_keys;
    void* received;
    const void* features;
    int64_t feature_count, feature_stride;
    void* features_out;
    const int64_t* rows;
    int64_t row_count;
    void* rows_out;
    const int64_t* pairs;
    int64_t pair_count;
    void* pairs_out;
    int64_t block_queries, block_keys;
    void* blocks_out""",
)
QUANTIZED = Structure("ll_quantized", "int64_t element; int64_t rotated; ll_tensor key_scale, value_scale")
CALL = Structure(
    "ll_call",
    """int64_t version, element;
    int64_t batch, query_heads, key_heads, queries, keys, width, value_width;
    ll_tensor query, key, value, output;
    void* logsumexp;
    const void* sink;
    const void* compare;
    double scale, dropout;
    uint64_t seed;
    int64_t threads;
    const ll_segment* segments;
    int64_t segment_count;
    const ll_span* spans;
    int64_t span_count;
    ll_intervals intervals;
    ll_tile_map tiles;
    ll_pages pages;
    const ll_rule* rules;
    int64_t rule_count;
    const ll_observation* observation;
    const ll_quantized* quantized""",
    groups={"shapes": "batch, query_heads, key_heads, queries, keys, width, value_width"},
    defaults={"version": VERSION},
)
GRADIENTS = Structure(
    "ll_gradients",
    f"""ll_tensor output, grad_output;
    const void* logsumexp;
    const void* grad_logsumexp;
    ll_tensor query, key, value;
    void* sink;
    void* compare;
    ll_tensor rules[{MAX_RULES}];
    uint64_t uncleared""",
)
MATRIX = Structure(
    "ll_matrix",
    """const void* weight;
    int64_t weight_stride;
    const void* bias;
    int64_t outputs;
    void* result""",
)
PRODUCT = Structure(
    "ll_product",
    f"""int64_t element, threads;
    int64_t rows, inputs;
    const void* states;
    int64_t state_stride;
    int64_t count;
    ll_matrix matrices[{MAX_MATRICES}]""",
)
NORM = Structure(
    "ll_norm",
    """int64_t element, threads;
    int64_t rows, width;
    const void* states;
    int64_t state_stride;
    const void* weight;
    double epsilon, offset;
    void* result;
    void* inverse;
    const void* grad;
    void* grad_states;
    void* grad_weight""",
)
GATE = Structure(
    "ll_gate",
    """int64_t element, threads;
    int64_t count;
    double linear, cubic;
    const void* gate;
    const void* up;
    void* result;
    const void* grad;
    void* grad_gate;
    void* grad_up""",
)
ROTATION = Structure(
    "ll_rotation",
    """int64_t element, threads;
    int64_t batch, heads, length, width, rotated;
    ll_tensor states, result;
    const void* own;
    const void* partners;
    int64_t row_stride, token_stride;
    double direction""",
    groups={"sizes": "batch, heads, length, width, rotated"},
)
SUM = Structure(
    "ll_sum",
    """int64_t element, threads;
    int64_t count;
    const void* left;
    const void* right;
    void* result""",
)
MATMUL = Structure(
    "ll_matmul",
    """int64_t element, threads;
    int64_t rows, steps, columns;
    const void* left;
    int64_t left_row, left_step;
    const void* right;
    int64_t right_step, right_column;
    const void* bias;
    void* result;
    int64_t result_row;
    int64_t add""",
)
QUANTIZATION = Structure(
    "ll_quantization",
    """int64_t element, threads;
    int64_t batch, heads, length, width;
    int64_t quantized, rotated;
    ll_tensor states;
    ll_tensor data;
    ll_tensor scale""",
    groups={"form": "batch, heads, length, width"},
)
STEP = Structure("ll_step", "int64_t kind, bytes")
