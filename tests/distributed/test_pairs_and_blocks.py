"""Pairs and blocks observed over several processes are those of one."""

import torch
import torch.distributed as dist
from support.processes import run_processes

import limelight
from limelight import ALiBi, Bias, Causal, Explicit, Keys, Observe, Packed, Padded, SoftCap, Window
from limelight.distributed import ContextParallel

LENGTH = 420
STREAMING = Causal() & (Window(70, 0) | Keys(3))
BLOCKS = (((64, 64), None), ((100, 7), (3, 1)), ((3, 128), None))


def cases():
    """Settings of calls, how many heads are computed at once, and whether a rank has no queries."""
    generator = torch.Generator().manual_seed(0)
    bias = Bias(torch.randn(4, LENGTH, LENGTH, generator=generator))
    padded = Padded(torch.tensor([400, 333]))
    yield "causal", {"pattern": Causal()}, 1, False
    yield "streaming, documents", {"pattern": STREAMING, "layout": Packed((50, 300, 70))}, None, False
    yield "ALiBi, padded", {"pattern": Causal(), "scores": (ALiBi.standard(4),), "layout": padded}, None, False
    yield "bias", {"scores": (bias, SoftCap(9.0)), "sink": torch.randn(4, generator=generator)}, None, False
    yield "mask", {"pattern": Explicit(torch.rand(LENGTH, LENGTH, generator=generator) > 0.5)}, None, True


def spread_of(own, at_once, empty):
    ranks = dist.get_world_size()
    if empty:
        runs = (((0, 60), (200, LENGTH)), ((60, 200),), (), ())[:ranks]
        return ContextParallel(dist.group.WORLD, runs, own.get("layout"), heads_at_once=at_once)
    how = {"layout": own.get("layout"), "heads_at_once": at_once}
    return ContextParallel.balanced(dist.group.WORLD, LENGTH, patterns=[own.get("pattern")], **how)


def rows_of(rule, spread):
    return Bias(spread.mine(rule.tensor, 1)) if isinstance(rule, Bias) else rule


def close(field, ours, theirs, like):
    if field == "block_pairs":
        return torch.equal(ours.expand_as(like), theirs.expand_as(like))
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def differing():
    """The observations that differ from those of one process."""
    generator, failed = torch.Generator().manual_seed(1), []
    whole = [torch.randn(2, heads, LENGTH, 16, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    pairs = torch.randint(LENGTH, (60, 2), generator=generator)
    for name, own, at_once, empty in cases():
        spread = spread_of(own, at_once, empty)
        theirs = {**own, "layout": spread, "scores": tuple(rows_of(rule, spread) for rule in own.get("scores", ()))}
        held = pairs[(pairs[:, :1] == spread.index).any(1)]
        mine = [spread.mine(x, 2) for x in whole]
        own_pairs = torch.stack([torch.searchsorted(spread.index, held[:, 0]), held[:, 1]], 1)
        for blocks, heads in BLOCKS:
            truth = limelight.attention(*whole, **own, observe=Observe(pairs=held, blocks=blocks, heads=heads))[1]
            observe = Observe(pairs=own_pairs, blocks=blocks, heads=heads)
            with limelight.watching(observe) as seen:
                ours = limelight.attention(*mine, **theirs, observe=observe, name="layer")[1]
            if list(seen) != ["layer"] or not torch.equal(seen["layer"].blocks, ours.blocks):
                failed.append(f"{name} watched")
            for field, found in ours.seen().items():
                if not close(field, found, getattr(truth, field), ours.blocks):
                    failed.append(f"{field} {name} {blocks}")
        alone = limelight.attention(*mine, **theirs, observe=Observe(blocks=BLOCKS[-1][0]))[1]
        if list(alone.seen()) != ["blocks", "block_pairs"] or not torch.equal(alone.blocks, ours.blocks):
            failed.append(f"blocks alone {name}")
        gradients = [torch.autograd.grad(one.pairs.square().sum(), whole[0])[0] for one in (ours, truth)]
        if not torch.allclose(*gradients, atol=1e-5):
            failed.append(f"gradient {name}")
    return failed


def test_pairs_and_blocks_are_those_of_the_whole_text():
    assert run_processes(differing, 2) == [[], []]
    assert run_processes(differing, 4) == [[]] * 4
