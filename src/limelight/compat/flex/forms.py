"""What a function of token indices computes, in the forms from which patterns are made.

Every number within a function has a form where it has one of these; the rules below say which form an operation gives.
A rule states an identity, so that a form is never a guess: what has none is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ...forms.patterns import Causal, Chunks, DilatedWindow, Keys, Pattern, Window
from .patterns import EVERYTHING, NOTHING, Below, SameDocument, both, either, inverse


class Affine(NamedTuple):
    """``query * i + key * j + offset``, of the index ``i`` of the query and ``j`` of the key."""

    query: int
    key: int
    offset: int = 0


class Quotient(NamedTuple):
    """``of // by``, rounded down, ``by > 0``."""

    of: Affine
    by: int


class Remainder(NamedTuple):
    """``of % by``, ``by > 0``."""

    of: Affine
    by: int


class Absolute(NamedTuple):
    """The absolute value of a whole number."""

    of: Affine


class Lookup(NamedTuple):
    """``table[...]`` at the indices that ``axes`` names, letters of ``bhqk``."""

    table: Tensor
    axes: str


class OfDocument(NamedTuple):
    """``numbers[table[i]]``, a number of the document of a query or a key, ``axis`` ``q`` or ``k``."""

    numbers: Tensor
    table: Tensor
    axis: str


class Local(NamedTuple):
    """An index less a number of its document: ``i - numbers[table[i]]``, a place within the document."""

    place: Affine
    numbers: Tensor
    table: Tensor


class Within(NamedTuple):
    """What has a form for queries and keys of one document, those with ``of_queries[i] == of_keys[j]``."""

    form: Any
    of_queries: Tensor
    of_keys: Tensor


class Mask(NamedTuple):
    """Whether a query sees a key: what ``pattern`` allows or, where it is not ``exact``, at most that."""

    pattern: Pattern
    exact: bool = True


Form = Affine | Quotient | Remainder | Absolute | Lookup | OfDocument | Local | Within | Mask | None
QUERY, KEY = Affine(1, 0), Affine(0, 1)


def constant(form: object) -> int | None:
    """The number that a form is, if it is one."""
    return form.offset if isinstance(form, Affine) and not (form.query or form.key) else None


# --- Masks -----------------------------------------------------------------------------------------------------------


def _and(a: Form, b: Form) -> Form:
    if not isinstance(a, Mask) and not isinstance(b, Mask):
        return None
    a, b = (x if isinstance(x, Mask) else Mask(EVERYTHING, False) for x in (a, b))
    return Mask(both(a.pattern, b.pattern), a.exact and b.exact)


def _or(a: Form, b: Form) -> Form:
    if not isinstance(a, Mask) or not isinstance(b, Mask):
        return None
    return Mask(either(a.pattern, b.pattern), a.exact and b.exact)


def _not(a: Form) -> Form:
    return Mask(inverse(a.pattern)) if isinstance(a, Mask) and a.exact else None


def _xor(a: Form, b: Form) -> Form:
    return _or(_and(a, _not(b)), _and(_not(a), b)) if _not(a) and _not(b) else None


def where(condition: Form, a: Form, b: Form) -> Form:
    """``a`` where the condition holds, else ``b``, of masks."""
    return _or(_and(condition, a), _and(_not(condition), b)) if _not(condition) and a and b else None


# --- Comparisons -----------------------------------------------------------------------------------------------------


def _at_least_zero(form: Affine) -> Form:
    """Where ``query * i + key * j + offset >= 0``."""
    query, key, offset = form
    if not query and not key:
        return Mask(EVERYTHING if offset >= 0 else NOTHING)
    if query and key:
        if query != -key:
            return None
        least = -(offset // abs(query))  # of i - j, or of j - i
        if query > 0:  # j <= i - least
            return Mask(
                Causal() if least == 0 else Window(None, -least) if least < 0 else inverse(Window(least - 1, None))
            )
        if least <= 0:  # j >= i + least
            return Mask(Window(-least, None))
        return Mask(inverse(Causal() if least == 1 else Window(None, least - 1)))
    if query + key > 0:
        first = -(offset // (query + key))
        return Mask(EVERYTHING if first <= 0 else inverse(_below(bool(query), first)))
    return Mask(_below(bool(query), offset // -(query + key) + 1))


def _below(queries: bool, bound: int) -> Pattern:
    if bound <= 0:
        return NOTHING
    return Below(bound, True) if queries else Keys(bound)


def _minus(a: Affine, b: Affine) -> Affine:
    return Affine(*(x - y for x, y in zip(a, b, strict=True)))


def _at_least(a: Form, b: Form) -> Form:
    """Where ``a >= b``."""
    if isinstance(a, Affine) and isinstance(b, Affine):
        return _at_least_zero(_minus(a, b))
    number = constant(b)
    if isinstance(a, Quotient):
        if number is not None:
            return _at_least(a.of, Affine(0, 0, number * a.by))
        return _compare_quotients(a, b) if isinstance(b, Quotient) else None
    if isinstance(b, Quotient):
        number = constant(a)
        return None if number is None else _at_least(Affine(0, 0, number * b.by + b.by - 1), b.of)
    if isinstance(a, Absolute) and number is not None:
        return _or(_at_least(a.of, b), _at_least(Affine(0, 0, -number), a.of))
    if isinstance(b, Absolute) and (number := constant(a)) is not None:
        return _and(_at_least(a, b.of), _at_least(b.of, Affine(0, 0, -number)))
    if isinstance(b, Lookup) and b.axes == "b" and a in (QUERY, KEY):
        return _not(Mask(Below(b.table, a == QUERY)))
    if isinstance(a, Lookup) and a.axes == "b" and b in (QUERY, KEY):
        return Mask(Below(a.table + 1, b == QUERY))
    return None


def _compare_quotients(a: Quotient, b: Quotient) -> Form:
    """Where the chunk of the query is that of the key or a later one, or the other way round."""
    if a.by != b.by or {a.of, b.of} != {QUERY, KEY}:
        return None
    earlier = Causal() if a.of == QUERY else inverse(Causal())
    return Mask(either(earlier, Chunks(a.by)))


def _equal(a: Form, b: Form) -> Form:
    """Where ``a == b``."""
    if isinstance(a, Remainder) and constant(b) == 0 and a.of.query == -a.of.key and abs(a.of.key) == 1:
        return Mask(DilatedWindow(None, None, a.by)) if a.of.offset % a.by == 0 else None
    if isinstance(b, Remainder) and constant(a) == 0:
        return _equal(b, a)
    if isinstance(a, Quotient) and isinstance(b, Quotient):
        return Mask(Chunks(a.by)) if a.by == b.by and {a.of, b.of} == {QUERY, KEY} else None
    if isinstance(a, Lookup) and isinstance(b, Lookup):
        if a.axes in ("k", "bk"):
            a, b = b, a
        if (a.axes, b.axes) in (("q", "k"), ("bq", "bk")):
            return Mask(_same_document(a.table, b.table))
        return None
    more, less = _at_least(a, b), _at_least(b, a)
    return _and(more, less) if more and less else None


def _same_document(of_queries: Tensor, of_keys: Tensor) -> Pattern:
    if of_queries.dim() == 2 and len(of_queries) == len(of_keys) == 1:  # one row of a batch
        one = of_queries[0]
        return SameDocument(one, one if of_keys is of_queries else of_keys[0])
    return SameDocument(of_queries, of_keys)


_RELATIONS: dict[str, Callable[[Form, Form], Form]] = {
    "ge": _at_least,
    "le": lambda a, b: _at_least(b, a),
    "gt": lambda a, b: _not(_at_least(b, a)),
    "lt": lambda a, b: _not(_at_least(a, b)),
    "eq": _equal,
    "ne": lambda a, b: _not(_equal(a, b)),
}
_OF_MASKS: dict[str, Callable[..., Form]] = {
    "bitwise_and": _and, "logical_and": _and, "bitwise_or": _or, "logical_or": _or, "bitwise_not": _not,
    "logical_not": _not, "bitwise_xor": _xor, "logical_xor": _xor, "where": where, "mul": _and,
}  # fmt: skip


# --- Whole numbers ---------------------------------------------------------------------------------------------------


def _sum(a: Affine, b: Affine, sign: int) -> Affine:
    return Affine(*(x + sign * y for x, y in zip(a, b, strict=True)))


def _product(a: Affine, b: Affine) -> Form:
    if (number := constant(b)) is None:
        a, number = b, constant(a)
    return None if number is None else Affine(*(x * number for x in a))


def _divided(a: Affine, b: Affine) -> Form:
    by = constant(b)
    if by is None or by <= 0:
        return None
    number = constant(a)
    return Quotient(a, by) if number is None else Affine(0, 0, number // by)


def _rest(a: Affine, b: Affine) -> Form:
    by = constant(b)
    if by is None or by <= 0:
        return None
    number = constant(a)
    return Remainder(a, by) if number is None else Affine(0, 0, number % by)


_OF_NUMBERS: dict[str, Callable[..., Form]] = {
    "add": lambda a, b: _sum(a, b, 1),
    "sub": lambda a, b: _sum(a, b, -1),
    "rsub": lambda a, b: _sum(b, a, -1),
    "mul": _product,
    "neg": lambda a: _sum(Affine(0, 0), a, -1),
    "abs": lambda a: Absolute(a),
    "floor_divide": _divided,
    "remainder": _rest,
}


def form_of(operation: str, operands: list[Any], settings: dict[str, Any]) -> Form:
    """The form of what an operation gives; ``None`` where it has none.

    Args:
        operation: its name in ATen.
        operands: their forms, ``None`` for one without; other arguments as they are.
        settings: arguments by name.
    """
    if operation == "div" and settings == {"rounding_mode": "floor"}:
        operation, settings = "floor_divide", {}
    if settings and settings != {"alpha": 1}:
        return None
    if any(isinstance(x, (OfDocument, Local, Within)) for x in operands):
        return _within_documents(operation, operands)
    if operation in _RELATIONS:
        return _RELATIONS[operation](*operands)
    if operation in _OF_NUMBERS and all(isinstance(x, Affine) for x in operands):
        return _OF_NUMBERS[operation](*operands)
    if operation in _OF_MASKS and any(isinstance(x, Mask) for x in operands):
        return _OF_MASKS[operation](*operands)
    return None


# --- Places within documents -----------------------------------------------------------------------------------------


def _within_documents(operation: str, operands: list[Any]) -> Form:
    """The form of an operation on places within documents, of which the distance is that of the indices."""
    if operation == "sub" and isinstance(operands[0], Affine) and isinstance(operands[1], OfDocument):
        index, (numbers, table, axis) = operands[0], operands[1]
        return Local(index, numbers, table) if index[:2] == (QUERY if axis == "q" else KEY)[:2] else None
    if any(isinstance(x, OfDocument) for x in operands):
        return None
    if any(isinstance(x, Local) for x in operands):
        return _of_places(operation, operands)
    documents = [x for x in operands if isinstance(x, Within)]
    of_queries, of_keys = documents[0].of_queries, documents[0].of_keys
    if any(x.of_queries is not of_queries or x.of_keys is not of_keys for x in documents):
        return None
    found = form_of(operation, [x.form if isinstance(x, Within) else x for x in operands], {})
    if found is None:
        return None
    if operation in ("bitwise_and", "logical_and"):
        same = SameDocument(of_queries, of_keys)
        if any(isinstance(x, Mask) and same in x.pattern.conjuncts() for x in operands):
            return found  # other documents are seen by neither
    return Within(found, of_queries, of_keys)


def _of_places(operation: str, operands: list[Any]) -> Form:
    """The form of the difference, or the comparison, of the places of a query and a key."""
    if len(operands) != 2 or not all(isinstance(x, Local) for x in operands):
        return None
    if operation != "sub" and operation not in _RELATIONS:
        return None
    queries, keys = sorted(operands, key=lambda x: x.place.key)
    if (queries.place[:2], keys.place[:2]) != (QUERY[:2], KEY[:2]) or queries.numbers is not keys.numbers:
        return None
    found = form_of(operation, [x.place for x in operands], {})
    return None if found is None else Within(found, queries.table, keys.table)
