"""Where ranks need nearly all keys they travel by an all-gather: the same bits as by the all-to-all."""

import pytest
import torch
import torch.distributed as dist
from support.processes import run_processes

import limelight
from limelight import Causal, Packed, Window
from limelight.distributed import ContextParallel, deal, exchange, make_plan, plan
from limelight.forms.layouts import Aligned

RANKS = 4


def plan_of(pattern, length, ranks, layout=None, rank=0):
    runs = deal(length, ranks, [pattern], layout)
    return make_plan(pattern, layout or Aligned(), (1, 1, length, length), runs, runs, rank, contiguous=False)


@pytest.mark.parametrize(
    ("pattern", "layout", "gathers"),
    [
        (None, None, True),
        (Causal(), None, True),
        (Causal() & Window(300, 0), None, False),
        (Causal(), Packed((1000,) * 8), False),
        (Causal(), Packed((7000, 1000)), True),
    ],
    ids=str,
)
def test_every_rank_chooses_alike_by_bytes(pattern, layout, gathers):
    assert {plan_of(pattern, 8000, 8, layout, rank).gathers for rank in range(8)} == {gathers}
    assert not plan_of(pattern, 8000, 1, layout).gathers


def outputs(dtype, runs, length, pattern):
    """Output, gradients, and a second derivative in float64."""
    generator = torch.Generator().manual_seed(0)
    spread = ContextParallel(dist.group.WORLD, runs)
    q, k, v = (
        spread.mine(torch.randn(2, heads, length, 16, generator=generator), 2).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    )
    out = limelight.attention(q, k, v[..., :8], pattern=pattern, layout=spread)
    first = torch.autograd.grad(out.square().sum(), [q, k, v], create_graph=dtype == torch.float64)
    second = torch.autograd.grad(first[1].square().sum(), [k, v]) if dtype == torch.float64 else ()
    return spread.plan(pattern, 2, 4).gathers, [out.detach(), *(x.detach() for x in (*first, *second))]


def differing():
    """What differs from the all-to-all: forward or with gradients by all-to-all in any bit, by reduce-scatter beyond
    rounding."""
    failed, kept = [], (plan.EXTRA, plan.NEEDED, exchange.NODE)
    for length, runs in (
        (700, deal(700, RANKS, [Causal()])),
        (501, (((0, 100), (300, 501)), ((100, 150),), (), ((150, 300),))),
    ):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for pattern in (None, Causal()):
                found = []
                for plan.EXTRA, plan.NEEDED, exchange.NODE in ((0.0, 0.0, 8), (9.0, 0.0, 8), (9.0, 0.0, 1)):
                    found.append(outputs(dtype, runs, length, pattern))
                if [gathers for gathers, _ in found] != [False, True, True]:
                    failed.append(f"not chosen {length} {pattern}")
                for n, (one, gathered, reduced) in enumerate(zip(*(x for _, x in found), strict=True)):
                    least = 8 * torch.finfo(dtype).eps * max([1.0, *one.abs().flatten().tolist()])
                    if not torch.equal(one, gathered) or not torch.allclose(one, reduced, rtol=0, atol=least):
                        failed.append(f"{n} {length} {dtype} {pattern}")
    plan.EXTRA, plan.NEEDED, exchange.NODE = kept
    return failed


def test_the_bits_are_those_of_the_all_to_all():
    assert run_processes(differing, RANKS) == [[]] * RANKS
