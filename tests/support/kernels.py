"""The kernels that this machine can run, one at a time, and how a call is computed three times to judge them."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

import limelight
from limelight import Additive, Observe
from limelight.backends import native, reference
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare
from support.oracles.plain import rounded
from support.strategies import Example, examples, sizes

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
AVAILABLE = native.instruction_sets()
# Every machine code once: `avx512bf16` and `amx` differ from `avx512` in bfloat16 alone, and `wide` has float32 alone.
KERNELS = [
    *[(isa, dtype) for isa in ("generic", "avx2", "avx512") for dtype in DTYPES],
    ("avx512bf16", torch.bfloat16),
    ("amx", torch.bfloat16),
    ("wide", torch.float32),
]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k[0]}-{k[1]}".replace("torch.", ""))
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))

# Lengths around the sides of the kernels' tiles (48 queries, 128 keys, 64 x 64 bits), and short ones; odd widths.
LENGTHS = st.integers(0, 12) | st.sampled_from([47, 48, 49, 63, 64, 65, 127, 128, 129, 200])
WIDTHS = st.integers(1, 40) | st.sampled_from([64, 80, 127, 128])
SIZES = sizes(lengths=LENGTHS, widths=WIDTHS, batch=st.integers(1, 2))


def calls(dtype: torch.dtype) -> st.SearchStrategy[Example]:
    """Random calls whose tensors lie in ``dtype``."""
    return examples(SIZES, dtype=dtype, depth=1, additive=True, extreme=True)


@contextmanager
def selected(isa: str):
    """Inside, the library runs on this instruction set."""
    if isa not in AVAILABLE:
        pytest.skip(f"this machine cannot run {isa} (only {', '.join(AVAILABLE) or native.why_missing()})")
    native.select_instruction_set(isa)
    try:
        yield
    finally:
        native.select_instruction_set(None)


@contextmanager
def threads(count: int):
    """Inside, PyTorch and the library have this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bits(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a, nan=3.0), torch.nan_to_num(b, nan=3.0))


def tensors_of(example: Example) -> dict[str, Tensor]:
    """Every float tensor of the call by name: what has a gradient."""
    named = {"query": example.query, "key": example.key, "value": example.value}
    if example.settings.get("sink") is not None:
        named["sink"] = example.settings["sink"]
    for n, rule in enumerate(example.settings["scores"]):
        named |= {f"{type(rule).__name__} {n}": tensor for tensor in rule.tensors()}
    if example.settings.get("compare") is not None:
        named["compare"] = example.settings["compare"].vector
    return named


def with_tensors(example: Example, named: dict[str, Tensor]) -> Example:
    """The call with other tensors."""
    settings = dict(example.settings)
    if "sink" in named:
        settings["sink"] = named["sink"]
    settings["scores"] = tuple(
        rule.with_tensors(iter([named[f"{type(rule).__name__} {n}"]])) if rule.tensors() else rule
        for n, rule in enumerate(settings["scores"])
    )
    if "compare" in named:
        settings["compare"] = Additive(named["compare"])
    return Example(example.sizes, named["query"], named["key"], named["value"], settings, example.truth)


@dataclasses.dataclass
class Upstream:
    """Gradients of a loss with respect to what a call gives."""

    output: Tensor  # in the dtype of the call
    logsumexp: Tensor | None  # in that of sums

    @classmethod
    def of(cls, example: Example, logsumexp: bool = True) -> Upstream:
        s, generator = example.sizes, torch.Generator().manual_seed(7)
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        output, lse = normal(s.B, s.Hq, s.Lq, s.Dv), normal(s.B, s.Hq, s.Lq)
        dtype = example.query.dtype
        return cls(output.to(dtype), lse.to(reference.accumulator(dtype)) if logsumexp else None)


def gradients(example: Example, upstream: Upstream, how: str = "native") -> dict[str, Tensor]:
    """Output, logsumexp and the gradient of every tensor: by the kernels (``native``), by the ``plain`` computation in
    the same dtype, or the ``truth``, from the definition in float64.
    """
    dtype = example.truth if how == "truth" else example.query.dtype
    leaves = {name: t.detach().to(dtype) for name, t in tensors_of(example).items()}
    if how != "truth":  # the strides of the call; an expanded tensor has a gradient for each place
        leaves = {name: t.detach() for name, t in tensors_of(example).items()}
    leaves = {name: t.requires_grad_() for name, t in leaves.items()}
    call = with_tensors(example, leaves)
    with nullcontext() if how == "native" else rounded(dtype):
        out, seen = limelight.attention(
            call.query, call.key, call.value, observe=Observe(logsumexp=True),
            backend="native" if how == "native" else "reference", **call.settings,
        )  # fmt: skip
        values, weights = [out], [upstream.output.to(dtype)]
        if upstream.logsumexp is not None:
            values.append(seen.logsumexp)
            weights.append(torch.where(seen.logsumexp.isfinite(), upstream.logsumexp.to(seen.logsumexp.dtype), 0.0))
        found = torch.autograd.grad(values, list(leaves.values()), weights)
    return {"output": out.detach(), "logsumexp": seen.logsumexp.detach(), **dict(zip(leaves, found, strict=True))}


def terms(example: Example, upstream: Upstream) -> dict[str, float]:
    """The largest sum of the absolute values of the terms of each gradient and of the output: their rounding is that of
    their terms.
    """
    named = {name: t.detach().double().requires_grad_() for name, t in tensors_of(example).items()}
    call = with_tensors(example, named)
    s, settings = example.sizes, call.settings
    if 0 in (s.Lq, s.Lk):
        return dict.fromkeys(("output", *named), 0.0)
    seen = Settings(layout=settings["layout"], pattern=settings["pattern"])
    prepared = prepare(call.query, call.key, call.value, seen)
    _, at, _ = reference._visibility(prepared)
    with torch.no_grad():
        _, seen = limelight.attention(
            call.query, call.key, call.value, backend="reference",
            observe=Observe(rows=tuple(range(s.Lq))), **settings,
        )  # fmt: skip
    P, group = seen.rows, s.Hq // s.Hkv
    Q, K, V = (named[n].detach().abs() for n in ("query", "key", "value"))
    K, V = K.repeat_interleave(group, 1), V.repeat_interleave(group, 1)
    dO = upstream.output.double().abs() / (1 - settings.get("dropout", 0.0))
    dP = torch.where(P > 0, dO @ V.mT, 0.0)
    delta = (P * dP).sum(-1, keepdim=True)
    if upstream.logsumexp is not None:
        delta = delta + upstream.logsumexp.double().abs()[..., None]
    dS, scale = P * (dP + delta), settings["scale"] or s.D**-0.5
    per_group = lambda x: x.unflatten(1, (s.Hkv, group)).sum(2)  # noqa: E731
    found = {"query": scale * dS @ K, "key": per_group(scale * dS.mT @ Q), "value": per_group(P.mT @ dO)}
    if "compare" in named:
        repeated = named["key"].detach().repeat_interleave(group, 1)
        bends = torch.tanh(named["query"].detach()[:, :, :, None] + repeated[:, :, None])  # (B, Hq, Lq, Lk, D)
        vector = named["compare"].detach().expand(s.Hq, s.D)[:, None, None]
        slopes = dS[..., None] * vector.abs() * (1 - bends**2)
        found |= {
            "query": slopes.sum(3),
            "key": per_group(slopes.sum(2)),
            "compare": (dS[..., None] * bends.abs()).sum((0, 2, 3)),
        }
    found |= {"sink": delta.sum((0, 2, 3)), "output": P @ V / (1 - settings.get("dropout", 0.0))}
    for n, rule in enumerate(settings["scores"]):
        name = f"{type(rule).__name__} {n}"
        if name in named:
            zeros = torch.zeros_like(P)
            found[name] = torch.autograd.grad(rule.apply(zeros, at), named[name], dS)[0].abs()
    return {name: found[name].max().item() for name in ("output", *named)}


def check_on_average(ours: Tensor, plain: Tensor, truth: Tensor, what: str, dtype: torch.dtype) -> None:
    """The rule with one rounding step and no more, each norm taken of every row of the batch and then averaged: the
    largest of some thousand errors is a matter of luck, their average over rows is not.
    """
    eps = torch.finfo(dtype).eps
    ours, plain, truth = (x.double().flatten(1) for x in (ours, plain, truth))
    for name, norm in (("maximum", lambda x: x.abs().amax(1)), ("RMS", lambda x: x.square().mean(1).sqrt())):
        mine, theirs, step = norm(ours - truth).mean(), norm(plain - truth).mean(), eps * truth.abs().amax(1).mean()
        assert mine <= 1.5 * theirs + step, f"{what}: {name} {mine:.2e}, plain {theirs:.2e}, step {step:.2e}"
