"""Dropout selects: what is dropped has no weight, whatever it holds, forward and backward as in the definition."""

import pytest
import torch
from support.kernels import every_kernel, selected

import limelight
from limelight import ALiBi
from limelight.backends import native, reference

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)


@every_kernel
@pytest.mark.parametrize("dropout", [0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize(("Lq", "Lk"), [(3, 5), (3, 1500), (60, 5), (60, 300)])
def test_numbers_that_are_not_finite(kernel, dropout, Lq, Lk):
    """NaN and infinity appear where the definition has them: a row whose keys are all dropped is 0."""
    isa, dtype = kernel
    sums = reference.accumulator(dtype)
    generator = torch.Generator().manual_seed(1)
    operands = {
        name: torch.randn(1, 2, n, 16, generator=generator).to(dtype) for name, n in (("q", Lq), ("k", Lk), ("v", Lk))
    }
    grad = torch.randn(1, 2, Lq, 16, generator=generator).to(dtype)
    for poisoned in operands:
        for poison in (torch.nan, torch.inf, -torch.inf):
            leaves = [x.clone() for x in operands.values()]
            place = list(operands).index(poisoned)
            leaves[place][0, 0, operands[poisoned].shape[2] // 2, 3] = poison
            leaves = [x.requires_grad_() for x in leaves]
            for rules in ((), (ALiBi(torch.tensor([0.1, 0.2], dtype=sums)),)):
                found = []
                for backend in ("native", "reference"):
                    with selected(isa):
                        output = limelight.attention(*leaves, scores=rules, dropout=dropout, seed=3, backend=backend)
                        found.append((output.detach(), *torch.autograd.grad(output, leaves, grad)))
                for ours, truth, name in zip(*found, ("output", "query", "key", "value"), strict=True):
                    what = f"{name} with {poison} in {poisoned} and {len(rules)} rules"
                    assert torch.equal(ours.isfinite(), truth.isfinite()), what
                    assert dropout < 1 - 1e-6 or not ours[truth == 0].any(), what
