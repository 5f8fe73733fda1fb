"""The truth for models of transformers: their own eager attention in float64, without their roundings to float32."""

import copy
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _NoFloat32(TorchFunctionMode):
    """Conversions to float32 give float64: norms, angles and softmaxes use float32 whatever the model's dtype."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {name: torch.float64 if arg is torch.float32 else arg for name, arg in (kwargs or {}).items()}
        return function(*args, **kwargs)


@contextmanager
def float64_throughout():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with _NoFloat32():
            yield
    finally:
        torch.set_default_dtype(default)


def in_float64(model):
    """A copy of a model that computes the truth."""
    double = copy.deepcopy(model).to(torch.float64)
    double.set_attn_implementation("eager")
    return double


def assert_no_worse(ours, eager, truth):
    """The error is at most 1.5 times that of eager, on the RMS and the 99th percentile, plus one rounding step.

    Not on the maximum: that of a whole network is one draw of noise at its worst conditioned token.
    """
    assert ours.shape == eager.shape == truth.shape
    assert ours.dtype == eager.dtype
    assert truth.dtype == torch.float64
    step = torch.finfo(ours.dtype).eps * truth.abs().max()
    mine, others = (ours - truth).abs(), (eager - truth).abs()
    assert mine.square().mean().sqrt() <= 1.5 * others.square().mean().sqrt() + step
    assert _percentile(mine) <= 1.5 * _percentile(others) + step


def _percentile(errors):
    return errors.flatten().kthvalue(round(0.99 * errors.numel())).values
