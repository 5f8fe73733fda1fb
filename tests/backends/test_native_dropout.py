"""Dropout selects: what is dropped has no weight, whatever it holds, forward and backward as in the definition."""

from functools import lru_cache

import pytest
import torch
from support.kernels import every_kernel, selected

import limelight
from limelight import ALiBi
from limelight.backends import native, reference

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)


NAMES = ("query", "key", "value")


def poisoned(dtype, Lq, Lk):
    """What is poisoned, query, key and value, and score rules; and the gradient of the output, the same for all."""
    generator = torch.Generator().manual_seed(1)
    operands = [torch.randn(1, 2, n, 16, generator=generator).to(dtype) for n in (Lq, Lk, Lk)]
    grad = torch.randn(1, 2, Lq, 16, generator=generator).to(dtype)
    slopes = torch.tensor([0.1, 0.2], dtype=reference.accumulator(dtype))
    cases = []
    for place, name in enumerate(NAMES):
        for poison in (torch.nan, torch.inf, -torch.inf):
            leaves = [x.clone() for x in operands]
            leaves[place][0, 0, leaves[place].shape[2] // 2, 3] = poison
            cases += [(f"{poison} in {name}", leaves, rules) for rules in ((), (ALiBi(slopes),))]
    return cases, grad


def results(leaves, rules, grad, dropout, backend):
    """The output and the gradients of query, key and value."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    output = limelight.attention(*leaves, scores=rules, dropout=dropout, seed=3, backend=backend)
    return output.detach(), *torch.autograd.grad(output, leaves, grad)


@lru_cache
def truths(dtype, dropout, Lq, Lk):
    """Of each case where the definition is finite, and where it is 0: computed once for all kernels of a dtype."""
    cases, grad = poisoned(dtype, Lq, Lk)
    found = [results(leaves, rules, grad, dropout, "reference") for _, leaves, rules in cases]
    return [[(x.isfinite(), x == 0) for x in of_case] for of_case in found]


@every_kernel
@pytest.mark.parametrize("dropout", [0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize(("Lq", "Lk"), [(3, 5), (3, 1500), (60, 5), (60, 300)])
def test_numbers_that_are_not_finite(kernel, dropout, Lq, Lk):
    """NaN and infinity appear where the definition has them: a row whose keys are all dropped is 0."""
    isa, dtype = kernel
    cases, grad = poisoned(dtype, Lq, Lk)
    for (what, leaves, rules), truth in zip(cases, truths(dtype, dropout, Lq, Lk), strict=True):
        with selected(isa):
            found = results(leaves, rules, grad, dropout, "native")
        for ours, (finite, zero), name in zip(found, truth, ("output", *NAMES), strict=True):
            assert torch.equal(ours.isfinite(), finite), f"{name} with {what} and {len(rules)} rules"
            assert dropout < 1 - 1e-6 or not ours[zero].any(), f"{name} with {what} and {len(rules)} rules"
