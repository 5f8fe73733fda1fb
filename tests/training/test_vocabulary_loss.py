"""The loss in runs: that of torch.nn.functional.cross_entropy, its gradients, and its memory."""

import pytest
import torch
from torch.nn import functional

from limelight.tensors.shapes import ArgumentError
from limelight.training import vocabulary_loss


def made(N=23, width=7, V=31, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    states = torch.randn(N, width, dtype=dtype, requires_grad=True)
    table = torch.randn(V, width, dtype=dtype, requires_grad=True)
    bias = torch.randn(V, dtype=dtype, requires_grad=True)
    targets = torch.randint(V, (N,))
    targets[::5] = -100
    return states, table, bias, targets


def plain(states, table, targets, bias=None, scale=1.0, cap=None, smoothing=0.0):
    logits = scale * states @ table.T
    logits = logits if bias is None else logits + bias
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    return functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")


@pytest.mark.parametrize("chunk", [1, 4, 1000, None])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("more", [{}, {"scale": 0.3}, {"cap": 2.0}, {"scale": 0.3, "cap": 2.0}])
def test_is_cross_entropy(chunk, smoothing, more):
    states, table, bias, targets = made()
    ours = vocabulary_loss(states, table, targets, bias=bias, label_smoothing=smoothing, chunk=chunk, **more)
    theirs = plain(states, table, targets, bias, smoothing=smoothing, **more)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for one, other in zip(
        torch.autograd.grad(ours * 0.7, (states, table, bias)),
        torch.autograd.grad(theirs * 0.7, (states, table, bias)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_gradcheck():
    states, table, bias, targets = made(N=6, width=3, V=5)

    def loss(states, table, bias):
        return vocabulary_loss(states, table, targets, bias=bias, scale=0.5, cap=1.5, label_smoothing=0.2, chunk=4)

    assert torch.autograd.gradcheck(loss, (states, table, bias))


def test_leading_dimensions_and_no_bias():
    states, table, _, targets = made(N=24)
    loss = vocabulary_loss(states.view(2, 3, 4, 7), table, targets.view(2, 3, 4))
    torch.testing.assert_close(loss, plain(states, table, targets))


def test_nothing_asked():
    states, table, _, targets = made()
    loss = vocabulary_loss(states, table, torch.full_like(targets, -100))
    loss.backward()
    assert loss == 0
    assert states.grad.abs().sum() == table.grad.abs().sum() == 0


def test_states_without_a_target_may_be_anything():
    states, table, _, targets = made()
    with torch.no_grad():
        states[targets == -100] = torch.nan
    loss = vocabulary_loss(states, table, targets)
    loss.backward()
    assert loss.isfinite()
    assert table.grad.isfinite().all()
    assert (states.grad[targets == -100] == 0).all()


def test_only_what_wants_a_gradient():
    states, table, _, targets = made()
    (d_states,) = torch.autograd.grad(vocabulary_loss(states, table.detach(), targets), states)
    torch.testing.assert_close(d_states, torch.autograd.grad(plain(states, table, targets), states)[0])
    (d_table,) = torch.autograd.grad(vocabulary_loss(states.detach(), table, targets), table)
    torch.testing.assert_close(d_table, torch.autograd.grad(plain(states, table, targets), table)[0])


def test_half_precision_is_as_near_as_whole_logits_in_half_precision():
    states, table, _, targets = made(N=64, width=48, V=200, dtype=torch.float32)
    exact = torch.autograd.grad(plain(states.double(), table.double(), targets), (states, table))
    with torch.autocast("cpu", torch.bfloat16):
        ours = vocabulary_loss(states, table, targets, chunk=16)
        theirs = functional.cross_entropy((states @ table.T).float(), targets, reduction="sum")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, plain(states, table, targets), rtol=2e-3, atol=0)
    found, peer = (torch.autograd.grad(loss, (states, table)) for loss in (ours, theirs))
    for ours_is, theirs_is, true in zip(found, peer, exact, strict=True):
        assert (ours_is - true).norm() <= 1.5 * (theirs_is - true).norm()


def test_the_logits_are_never_held_whole():
    N, V, width = 4096, 5000, 8
    states, table, _, targets = made(N, width, V, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda saved: kept.append(saved.numel()) or saved, lambda saved: saved
    ):
        vocabulary_loss(states, table, targets, chunk=64).backward()
    assert max(kept) == max(N, V) * width  # of the gradients; logits would be N * V


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table": torch.randn(31, 6)}, "`states` must be"),
        ({"targets": torch.zeros(22, dtype=torch.int64)}, "`targets` must hold one"),
        ({"targets": torch.full((23,), 31)}, "must lie between 0 and 30"),
        ({"bias": torch.zeros(30)}, "`bias` must have the shape"),
        ({"label_smoothing": 1.5}, "`label_smoothing` must lie"),
    ],
)
def test_wrong(change, words):
    states, table, _, targets = made(dtype=torch.float32)
    with pytest.raises(ArgumentError, match=words):
        vocabulary_loss(**{"states": states, "table": table, "targets": targets, **change})
