"""A hypothesis strategy for strides: views of every kind that PyTorch allows, of any shape."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

KINDS = ("plain", "permuted", "expanded", "zero", "overlapping", "gaps", "offset", "odd steps of single sizes")


@st.composite
def viewed(draw, shape, dtype=torch.float64, kinds=KINDS):
    """``(leaf, view)``: numbers of their own, and a function from them to a tensor of ``shape``."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    make = lambda *sizes: torch.randn(*sizes, generator=generator, dtype=torch.float64).to(dtype)  # noqa: E731
    kind = draw(st.sampled_from(kinds))
    if kind == "permuted":
        order = draw(st.permutations(range(len(shape))))
        back = sorted(range(len(shape)), key=order.__getitem__)
        return make(*[shape[n] for n in order]), lambda leaf: leaf.permute(back)
    if kind in ("expanded", "zero"):
        shared = [draw(st.booleans()) or kind == "zero" for _ in shape]
        return make(*[1 if one else n for n, one in zip(shape, shared, strict=True)]), lambda leaf: leaf.expand(shape)
    if kind in ("overlapping", "odd steps of single sizes"):
        steps = [draw(st.integers(0, 5)) for _ in shape]
        if kind != "overlapping":
            plain = torch.empty(shape).stride()
            steps = [step if n == 1 else old for n, step, old in zip(shape, steps, plain, strict=True)]
        start = draw(st.integers(0, 3))
        reach = start + 1 + sum((max(n, 1) - 1) * step for n, step in zip(shape, steps, strict=True))
        return make(reach), lambda leaf: leaf.as_strided(shape, steps, leaf.storage_offset() + start)
    if kind == "gaps":
        every = [draw(st.integers(1, 3)) for _ in shape]
        cut = tuple(slice(None, None, step) for step in every)
        sizes = [max(0, (n - 1) * step + 1) for n, step in zip(shape, every, strict=True)]
        return make(*sizes), lambda leaf: leaf[cut]
    if kind == "offset":
        more = [n + draw(st.integers(0, 2)) for n in shape]
        cut = tuple(slice(m - n, m) for n, m in zip(shape, more, strict=True))
        return make(*more), lambda leaf: leaf[cut]
    return make(*shape), lambda leaf: leaf
