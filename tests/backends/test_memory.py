"""Memory of results that serves the next call."""

import gc
import threading

import pytest
import torch

import limelight
from limelight import Bias, Causal
from limelight.backends import memory

MANY = (4, 2**17)  # float32: 2 MiB


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(memory, "_pool", type(memory._pool)())
    monkeypatch.setattr(memory, "MAX_POOL_BYTES", 2**24)


def test_memory_serves_again_when_its_last_tensor_is_gone():
    first = memory.empty(MANY, torch.float32)
    address, part = first.data_ptr(), first[1:2]
    del first
    assert memory.empty(MANY, torch.float32).data_ptr() != address  # a view holds it
    del part
    gc.collect()
    assert address in {memory.empty(MANY, torch.float32).data_ptr() for _ in range(2)}


def test_tensors_that_live_share_nothing():
    alive = [memory.empty(MANY, torch.float32).fill_(n) for n in range(6)]
    del alive[::2]
    alive += [memory.empty(MANY, torch.float32).fill_(n) for n in (10, 11, 12)]
    assert [int(x.min()) for x in alive] == [int(x.max()) for x in alive] == [1, 3, 5, 10, 11, 12]


def test_no_more_is_kept_than_said():
    alive = [memory.empty(MANY, torch.float32) for _ in range(20)]
    del alive
    gc.collect()
    assert 2**23 < sum(piece.nbytes() for piece in memory._pool) <= 2**24
    small, large = memory.empty((4,), torch.float32), memory.empty((2**23,), torch.float32)  # of which none is kept
    del small, large
    gc.collect()
    assert all(2**20 < piece.nbytes() < 2**22 for piece in memory._pool)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_looks_as_what_pytorch_makes(dtype):
    for like in (
        torch.empty(2, 8, 600, 128, dtype=dtype),
        torch.empty(2, 600, 8, 128, dtype=dtype).transpose(1, 2),
        torch.empty(2, 1, 600, 1024, dtype=dtype).expand(2, 8, 600, 1024),
    ):
        made, theirs = memory.empty_like(like), torch.empty_like(like)
        assert (made.shape, made.stride(), made.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        assert made.data_ptr() % 64 == 0
        assert not made._is_view()
    for size in (2**20, 2**23):
        zeros = memory.zeros((2, size), torch.float32)
        assert zeros.data_ptr() % 64 == 0
        assert not zeros.any()


def test_zeros_are_zeros_in_memory_that_was_used():
    memory.empty(MANY, torch.float32).fill_(7.0)
    assert not memory.zeros(MANY, torch.float32).any()


def test_results_of_calls_are_their_own():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, 1024, 64, requires_grad=True).unbind()
    bias = torch.randn(8, 1024, 1024, requires_grad=True)
    call = lambda: limelight.attention(q, k, v, pattern=Causal(), scores=(Bias(bias),), backend="native")  # noqa: E731
    first = call()
    kept = first.detach().clone()
    second = call()
    second.detach().zero_()
    second += 1.0  # in place, as PyTorch's own results may be changed
    assert torch.equal(first, kept)
    grads = torch.autograd.grad(call().sum(), (q, k, v, bias))
    copies = [g.clone() for g in grads]
    again = torch.autograd.grad(call().sum(), (q, k, v, bias))
    assert all(torch.equal(g, c) and torch.equal(g, a) for g, c, a in zip(grads, copies, again, strict=True))
    assert not grads[3].triu(1).any()


def test_threads_take_and_give_back_at_once():
    wrong = []

    def work(n):
        for _ in range(200):
            made = memory.empty(MANY, torch.float32).fill_(n)
            if not (made == n).all():
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
