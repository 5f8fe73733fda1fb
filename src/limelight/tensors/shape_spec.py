"""The shapes of a function's tensors, checked together."""

from __future__ import annotations

from torch import Tensor

from .shapes import ArgumentError, check_dense, wrong


class ShapeSpec:
    """The shapes of a function's tensors, by letters: ``ShapeSpec(states="... n", weight="m n", bias="m")``.

    Equal letters are equal sizes, ``1`` is the size 1, and a shape that begins with dots allows any leading dimensions.
    Optional tensors come last.
    """

    def __init__(self, **shapes: str) -> None:
        self.shapes = shapes
        #: For each tensor its rank, whether more dimensions are allowed, and which sizes are equal: (dimension, other
        #: tensor, dimension of that), counted from the last; tensor -1 stands for the size 1.
        self.rows: list[tuple[int, bool, list[tuple[int, int, int]]]] = []
        first: dict[str, tuple[int, int]] = {"1": (-1, 0)}
        for n, shape in enumerate(shapes.values()):
            letters = shape.split()
            more = letters[0] == "..."
            sizes = []
            for back, letter in enumerate(reversed(letters[more:]), 1):
                if letter in first:
                    sizes.append((-back, *first[letter]))
                else:
                    first[letter] = n, -back
            self.rows.append((len(letters) - more, more, sizes))

    def check(self, *tensors: Tensor | None) -> None:
        """Raise `ArgumentError` unless all of them are tensors that fit together."""
        try:
            self._check(tensors)
        except (AttributeError, RuntimeError, TypeError):  # no tensor, or one without sizes
            for name, tensor in zip(self.shapes, tensors, strict=False):
                if tensor is not None:
                    check_dense(name, tensor)
            raise

    def _check(self, tensors: tuple[Tensor | None, ...]) -> None:
        sizes_of: list[tuple[int, ...]] = []
        for tensor, (rank, more, sizes) in zip(tensors, self.rows, strict=False):
            if tensor is None:
                return
            shape = tensor.shape
            if len(shape) != rank and (not more or len(shape) < rank):
                raise self.wrong(tensors, len(sizes_of))
            for dimension, other, its in sizes:
                if shape[dimension] != (1 if other < 0 else sizes_of[other][its]):
                    raise self.wrong(tensors, len(sizes_of))
            sizes_of.append(shape)

    def wrong(self, tensors: tuple[Tensor | None, ...], n: int) -> ArgumentError:
        """The error that the ``n``-th tensor does not fit."""
        shown = ", ".join(f"{name} ({', '.join(shape.split())})" for name, shape in self.shapes.items())
        given = ", ".join(str(tuple(tensor.shape)) for tensor in tensors if tensor is not None)
        return wrong(list(self.shapes)[n], f"must fit {shown}", f"the shapes are {given}", "Check which is which.")
