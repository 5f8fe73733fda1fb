"""What a function of a score and of token indices computes: its operations, recorded once for all indices.

FlexAttention calls such a function with tensors without dimensions. Recorded, it is a list of operations, each with the
form of what it gives (`forms`) and the indices that this depends on; any of them can be evaluated for many indices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...tensors.shapes import describe, wrong
from ...tensors.torch_internals import (
    disabled_torch_function,
    is_transform_tensor,
    tree_leaves,
    tree_map,
    without_transforms,
)
from .forms import KEY, QUERY, Affine, Form, Lookup, Mask, OfDocument, form_of
from .patterns import EVERYTHING, NOTHING
from .score_forms import Scored, score_form

#: The arguments of a function of indices: batch row, query head, query, key.
AXES = "bhqk"
_MADE_OF_NOTHING = ("new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like")


@dataclass(eq=False)
class Node:
    """A number within a recorded function.

    Attributes:
        value: what it is for the first query and key.
        form: what it is for all, where it has a form.
        depends: what it depends on: letters of `AXES`, ``d`` for the distance from query to key, ``s`` for the score.
        operation: what computes it; ``None`` for an argument of the function.
        operands: arguments of the operation, by place and by name, with nodes in the place of numbers.
    """

    value: Tensor
    form: Any
    depends: frozenset[str]
    operation: Any = None
    operands: tuple[Any, Any] = ((), {})


@dataclass(eq=False)
class Recording:
    """A recorded function of ``name``: its arguments by letter, its operations in order, and its result."""

    name: str
    arguments: dict[str, Node]
    steps: list[Node] = field(default_factory=list)
    result: Any = None  # a Node, or a tensor that depends on no argument

    def evaluate(self, node: Any, dimensions: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """A number for all combinations of indices, evaluated as FlexAttention does it: by `torch.vmap`.

        Args:
            node: the number; it must not depend on the score.
            dimensions: for each dimension of the result the indices, ``(n,)`` int64, of one letter of `AXES`, or of
                several that go along together.

        Returns:
            A tensor of these dimensions, of size 1 where it does not depend on them. Derivatives reach tensors that the
            function captured.
        """
        if not isinstance(node, Node):
            return torch.as_tensor(node).reshape((1,) * len(dimensions))
        depends = {"q", "k"} | node.depends if "d" in node.depends else node.depends
        used = [depends & set(indices) != set() for indices in dimensions]

        def of_scalars(*scalars: Tensor) -> Tensor:
            return self._compute(node, dict(zip(self.arguments, scalars, strict=True)))

        function: Callable[..., Tensor] = of_scalars
        given = {letter: argument.value for letter, argument in self.arguments.items()}
        for indices, mapped in zip(reversed(dimensions), reversed(used), strict=True):
            if mapped:
                given |= {letter: index.to(node.value.device) for letter, index in indices.items()}
                function = torch.vmap(function, in_dims=tuple(0 if letter in indices else None for letter in given))
        sizes = [len(next(iter(indices.values()))) for indices in dimensions]
        return function(*given.values()).reshape([n if mapped else 1 for n, mapped in zip(sizes, used, strict=True)])

    def _compute(self, node: Node, values: Mapping[str, Tensor]) -> Tensor:
        known: dict[Node, Tensor] = {self.arguments[letter]: value for letter, value in values.items()}
        for step in self._needed(node):
            args, kwargs = tree_map(lambda x: known[x] if isinstance(x, Node) else x, step.operands)
            known[step] = step.operation(*args, **kwargs)
        return known[node]

    def _needed(self, node: Node) -> Iterator[Node]:
        """The steps that lead to a number, in order."""
        needed = {node}
        for step in reversed(self.steps):
            if step in needed:
                needed.update(x for x in tree_leaves(step.operands) if isinstance(x, Node))
        return (step for step in self.steps if step in needed)


def record(
    name: str, function: Callable[..., Any], device: torch.device, score: torch.dtype | None = None
) -> Recording:
    """Record a function of ``(b, h, q_idx, kv_idx)`` or, with the dtype of a ``score``, of a score before these.

    Args:
        name: of the function in errors.
        function: what is recorded.
        device: of its arguments.
        score: the dtype of the score, if it takes one.

    Raises:
        ArgumentError: it is not callable, chooses by the numbers of its arguments in Python, changes a number in place,
            captures a tensor of a transform of `torch.func`, or gives no single number.
    """
    if not callable(function):
        raise wrong(name, "must be callable", f"it is {describe(function)}", "Pass a function.")
    with without_transforms():
        recording = Recording(name, _arguments(device, score))
        with _OutsideOfTransforms(name):
            result = function(*(_Symbol(node, recording) for node in recording.arguments.values()))
    if not isinstance(result, Tensor) or result.dim():
        rule, way_out = "must give a tensor without dimensions", "It is called with one query and one key."
        raise wrong(name, rule, f"it gave {describe(result)}", way_out)
    recording.result = result.node if isinstance(result, _Symbol) else result
    return recording


def _arguments(device: torch.device, score: torch.dtype | None) -> dict[str, Node]:
    """The arguments of a function that is recorded, by letter."""
    forms = {"b": None, "h": None, "q": QUERY, "k": KEY}
    arguments = {
        letter: Node(torch.zeros((), dtype=torch.int64, device=device), form, frozenset(letter))
        for letter, form in forms.items()
    }
    if score is None:
        return arguments
    return {"s": Node(torch.ones((), dtype=score, device=device), Scored(), frozenset("s")), **arguments}


class IndexByTensors(TorchFunctionMode):
    """Within it ``tensor[i, j]`` with tensors without dimensions is an indexing operation, where Python reads them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__getitem__:
            tensor, index = args
            index = index if isinstance(index, tuple) else (index,)
            whole = all(isinstance(i, (int, Tensor)) and getattr(i, "dtype", None) is not torch.bool for i in index)
            if whole and any(isinstance(i, Tensor) for i in index):
                of_ints = [i if isinstance(i, Tensor) else torch.tensor(i, device=tensor.device) for i in index]
                return torch.ops.aten.index(tensor, of_ints)
        return func(*args, **(kwargs or {}))


class _OutsideOfTransforms(IndexByTensors):
    """Also refuses tensors of a transform of `torch.func`, whose derivatives would be lost."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(x, Tensor) and is_transform_tensor(x) for x in tree_leaves((args, kwargs))):
            rule, way_out = "must not capture a tensor that torch.func transforms", "Use torch.autograd for it."
            raise wrong(self.name, rule, f"it does, in {getattr(func, '__name__', func)}", way_out)
        return super().__torch_function__(func, types, args, kwargs)


class _Symbol(Tensor):
    """A number of a function that is being recorded."""

    node: Node
    recording: Recording
    __torch_function__ = disabled_torch_function  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, node: Node, recording: Recording) -> _Symbol:
        value = node.value
        made: Any = Tensor._make_wrapper_subclass(cls, value.shape, dtype=value.dtype, device=value.device)
        return made  # type: ignore[no-any-return]

    def __init__(self, node: Node, recording: Recording) -> None:
        self.node, self.recording = node, recording

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return "a number within a recorded function"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, _Symbol)).recording
        operands = tree_map(lambda x: x.node if isinstance(x, _Symbol) else x, (tuple(args), dict(kwargs)))
        name = func._schema.name.removeprefix("aten::")
        if name in ("_local_scalar_dense", "is_nonzero", "equal"):
            rule, way_out = "must not read its arguments as numbers of Python", "Use torch.where instead of `if`."
            raise wrong(found.name, rule, "it does, by `if`, int(), float() or .item()", way_out)
        if func._schema.is_mutable:
            raise wrong(
                found.name, "must not change a tensor in place", f"it calls {name}", "Use the operation without _."
            )
        values = tree_map(lambda x: x.value if isinstance(x, Node) else x, operands)
        value = func(*values[0], **values[1])
        if not isinstance(value, Tensor):
            raise wrong(found.name, "must use operations that give a tensor", f"it calls {name}", "Use another one.")
        node = Node(value.detach(), *_described(name, value, operands), func, operands)
        found.steps.append(node)
        return _Symbol(node, found)


def _described(name: str, value: Tensor, operands: tuple[Any, Any]) -> tuple[Any, frozenset[str]]:
    """The form of what an operation gives, and what it depends on."""
    if name in _MADE_OF_NOTHING and not value.dim():
        return of_constant(value), frozenset()
    args, kwargs = operands
    nodes = [x for x in tree_leaves(operands) if isinstance(x, Node)]
    depends = frozenset().union(*(node.depends for node in nodes))
    if any(isinstance(node.form, Scored) for node in nodes):
        return score_form(name, list(args), kwargs), depends
    if name == "index":
        return _looked_up(*args), depends
    if value.dim():
        return None, depends
    form = form_of(name, [_form(x) for x in args], kwargs)
    if isinstance(form, Affine):
        if value.dtype.is_floating_point:
            return None, depends
        letters = (form.query != 0) * "q" + (form.key != 0) * "k"
        depends = frozenset("d") if letters == "qk" and form.query == -form.key else frozenset(letters)
    return form, depends


def _form(operand: Any) -> Any:
    if isinstance(operand, Node):
        return operand.form
    if isinstance(operand, bool) or (isinstance(operand, Tensor) and not operand.dim()):
        return of_constant(torch.as_tensor(operand))
    if isinstance(operand, float) and operand.is_integer():
        operand = int(operand)
    return Affine(0, 0, operand) if isinstance(operand, int) else None


def of_constant(value: Tensor) -> Form | float:
    """The form of a number that depends on nothing."""
    if value.dtype == torch.bool:
        return Mask(EVERYTHING if bool(value) else NOTHING)
    if value.dtype.is_complex:
        return None
    return float(value) if value.dtype.is_floating_point else Affine(0, 0, int(value))


def _looked_up(table: Any, indices: Sequence[Any]) -> Form:
    """What is read from a tensor at indices; ``None`` where an index is not one of the function's arguments."""
    if not isinstance(table, Tensor) or table.dtype.is_floating_point or len(indices) != table.dim():
        return None
    inner = getattr(indices[0], "form", None)
    if isinstance(inner, Lookup) and len(indices) == 1 and inner.axes in ("q", "k"):
        return OfDocument(table, inner.table, inner.axes)
    axes = ""
    for index in indices:
        if not isinstance(index, Node):
            return None
        if index.operation is None and len(index.depends) == 1:
            axes += next(iter(index.depends))
        elif index.form in (QUERY, KEY):
            axes += "q" if index.form == QUERY else "k"
        else:
            return None
    return Lookup(table, axes)
