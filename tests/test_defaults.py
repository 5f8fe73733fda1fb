"""torch's default dtype and device are the user's: they change no number of a call whose tensors say what they are."""

import contextlib

import pytest
import torch

import limelight
from limelight import ALiBi, Causal, KeyMask, Observe, Packed, Padded, Predicate, RelativeBias, SoftCap, Window
from limelight.models import sound
from limelight.nn import DynamicNTK, Rotary, Sinusoids, YaRN

torch.manual_seed(0)
X = torch.randn(2, 4, 9, 8)
SLOPES, TABLE, SINK = torch.rand(4), torch.randn(4, 32), torch.randn(4)
KEYS = torch.arange(9) < torch.tensor([[9], [5]])
SOUND = torch.arange(800).float().sin()
POSITIONS = torch.tensor([[0, 7, 100_003]])
SEE = Observe(
    logsumexp=True, entropy=True, max_weight=True, distance=True, top=2, received=True, blocks=(4, 4),
    rows=(3, 1), pairs=((3, 1), (0, 0)), features=torch.randn(9, 2),
)  # fmt: skip


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def everything():
    """Every number that a call gives, in the kernels and by the definition, and a gradient of it."""
    torch.manual_seed(1)
    for backend in ("native", "reference"):
        x = X.clone().requires_grad_()
        rules = (ALiBi(SLOPES), RelativeBias(TABLE), SoftCap(4.0))
        pattern = Causal() & Window(5, 0)
        out, seen = limelight.attention(
            x, x, x, layout=KeyMask(KEYS), pattern=pattern, scores=rules, sink=SINK, observe=SEE, backend=backend
        )
        yield from (out, *seen.seen().values(), torch.autograd.grad(out.square().sum(), x)[0])
        with torch.no_grad():
            yield limelight.attention(x, x, x, dropout=0.4, backend=backend)
            yield limelight.attention(x, x, x, layout=Packed((4, 5)), dropout=0.4, seed=3, backend=backend)
            yield limelight.attention(x, x, x, layout=Padded(7), observe=SEE, backend=backend)[0]
            rule = Predicate(lambda at: (at.key_position + at.head) % 3 != 0)
            yield limelight.attention(x, x, x, pattern=rule, backend=backend)
    for stretch in (None, YaRN(4.0, 2048), DynamicNTK(2.0, 64)):
        yield from Rotary(8, scaling=stretch).at(POSITIONS, torch.float32)[:2]
    yield Sinusoids(8)(POSITIONS)
    sound._bands.cache_clear()
    yield sound.spectrum(SOUND, seconds=None)


@pytest.mark.parametrize(
    "default",
    [
        *[lambda dtype=dtype: default_dtype(dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)],
        lambda: torch.device("meta"),  # it stands for any device but that of the tensors
    ],
    ids=["float64", "bfloat16", "float16", "meta"],
)
def test_defaults_change_nothing(default):
    usual = list(everything())
    with default():
        found = list(everything())
    assert len(found) == len(usual) > 30
    for one, other in zip(found, usual, strict=True):
        assert (one.dtype, one.device) == (other.dtype, other.device)
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_published_slopes_are_float32():
    with default_dtype(torch.bfloat16):
        slopes = ALiBi.standard(12).slopes
    exact = [2.0 ** -(h + 1) for h in range(8)] + [2.0 ** -(h + 0.5) for h in range(4)]
    assert slopes.dtype == torch.float32
    torch.testing.assert_close(slopes, torch.tensor(exact))
