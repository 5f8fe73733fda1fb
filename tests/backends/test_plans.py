"""Plans: the host side of a GPU call, recorded and repeated, launches what the code would launch as it is written."""

import gc
import re
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.launches import check_launches, forward, settled
from support.strategies import examples, sizes

import limelight
from limelight import (
    ALiBi,
    Aligned,
    Bias,
    Causal,
    Explicit,
    Packed,
    Padded,
    Paged,
    Prefix,
    RelativeBias,
    SoftCap,
    Window,
)
from limelight.backends import gpu
from limelight.backends.gpu import flash1, flash2, launching, machine, plans
from limelight.backends.gpu.hopper import flash3
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare
from limelight.tensors.torch_internals import storage_references

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

pytestmark = pytest.mark.usefixtures("interpreter")

SIZES = sizes(lengths=st.sampled_from([1, 15, 16, 70]), widths=st.sampled_from([16, 33, 64]), batch=st.integers(1, 2))
CALLS = examples(SIZES, depth=1)


def again(call):
    """A call of the same form with tensors at other addresses, as aligned as before."""

    def moved(x):
        span = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True)) + 1
        room = torch.randn(span + 64).to(x.dtype)
        first = (x.data_ptr() - room.data_ptr()) % 64 // x.itemsize
        return room.as_strided(x.shape, x.stride(), first)

    return call.replace(query=moved(call.query), key=moved(call.key), value=moved(call.value))


def backward(backend, call):
    B, Hq, _, Lq, _, _, Dv = call.shapes
    output = torch.zeros(B, Hq, Lq, Dv, dtype=call.query.dtype)
    grad = torch.ones(B, Lq, Hq, Dv, dtype=call.query.dtype).transpose(1, 2)
    wanted = (True,) * (3 + len(call.operands))
    return backend.backward(call, output, torch.zeros(B, Hq, Lq), grad, None, wanted)


def check_form(monkeypatch, log, function, backend, call, calls=4):
    """Calls of one form launch what the code launches as it is written, whether they have a plan by then or not."""
    for _ in range(calls):
        call = again(call)
        check_launches(monkeypatch, log, function, backend, call)


@pytest.mark.parametrize("function", [forward, backward])
@settings(max_examples=30)
@given(CALLS, CALLS, st.sampled_from([torch.float32, torch.float16]), st.booleans())
def test_any_two_forms_are_never_confused(function, monkeypatch, logged, some, other, dtype, drawn):
    """Those of earlier examples are kept, too."""
    for example in (some, other, some, other):
        tensors = (getattr(example, name).to(dtype) for name in ("query", "key", "value"))
        change = {"seed": torch.tensor([5])} if drawn and "seed" in example.settings else {}
        call = prepare(*tensors, Settings(**example.settings | change))
        if not flash2.reasons_against(call):
            check_form(monkeypatch, logged, function, flash2, call, calls=2)


def plain(Hq=4, Hkv=2, Lq=70, Lk=70, D=64, B=1, dtype=torch.float16, **change):
    tensors = torch.zeros(B, Hq, Lq, D), torch.zeros(B, Hkv, Lk, D), torch.zeros(B, Hkv, Lk, D)
    return prepare(*(x.to(dtype) for x in tensors), Settings(**{"pattern": Causal()} | change))


def paged(pages):
    query, stored = torch.zeros(1, 4, 6, 64), torch.zeros(8, 2, 16, 64)
    return prepare(query, stored, stored.clone(), Settings(layout=Paged((2, 4), (20, 30), pages), pattern=Causal()))


FORMS = {
    "plain": plain,
    "window": lambda: plain(pattern=Causal() & Window(9, 0)),
    "another window": lambda: plain(pattern=Causal() & Window(10, 0)),
    "scale": lambda: plain(scale=0.5),
    "negative scale": lambda: plain(scale=-0.5),
    "float32": lambda: plain(dtype=torch.float32),
    "longer": lambda: plain(Lq=71, Lk=71),
    "one query": lambda: plain(Lq=1, Lk=500),
    "packed": lambda: plain(layout=Packed((30, 40))),
    "packed otherwise": lambda: plain(layout=Packed((31, 39))),
    "padded": lambda: plain(layout=Padded(torch.tensor([60]))),
    "placed": lambda: plain(layout=Aligned(query_start=3)),
    "slopes": lambda: plain(scores=(ALiBi(torch.rand(4)),)),
    "slopes of rows": lambda: plain(scores=(ALiBi(torch.rand(1, 4)),)),
    "soft cap": lambda: plain(scores=(SoftCap(3.0),)),
    "another soft cap": lambda: plain(scores=(SoftCap(4.0),)),
    "bias": lambda: plain(scores=(Bias(torch.rand(70, 70)),)),
    "bias of heads": lambda: plain(scores=(Bias(torch.rand(4, 1, 70)),)),
    "table": lambda: plain(scores=(RelativeBias(torch.rand(4, 32)),)),
    "sink": lambda: plain(sink=torch.rand(4)),
    "mask": lambda: plain(pattern=Explicit(torch.rand(70, 70) < 0.5)),
    "mask and dropout": lambda: plain(pattern=Explicit(torch.rand(70, 70) < 0.5), dropout=0.1, seed=torch.tensor(4)),
    "intervals": lambda: plain(pattern=Prefix(torch.tensor([9])) | Causal()),
    "dropout": lambda: plain(dropout=0.1, seed=torch.tensor(4)),
    "more dropout": lambda: plain(dropout=0.2, seed=torch.tensor(4)),
    "paged": lambda: paged([[0, 1], [2, 3]]),
    "paged otherwise": lambda: paged([[3, 1], [2, 0]]),
}


@pytest.mark.parametrize("function", [forward, backward])
def test_forms(function, monkeypatch, logged):
    for _ in range(2):
        for name, make in FORMS.items():
            if function is forward or "paged" not in name:
                check_form(monkeypatch, logged, function, flash2, make())
    assert len(settled()) >= len(FORMS) - 6  # those of masks are gone with their lowering


@pytest.mark.parametrize("name", ["plain", "window", "packed", "slopes", "soft cap", "sink", "longer"])
@pytest.mark.parametrize("function", [forward, backward])
def test_forms_on_hopper(function, name, monkeypatch, logged):
    check_form(monkeypatch, logged, function, flash3, FORMS[name]())
    assert len(settled()) == 1


def test_first_algorithm(monkeypatch, logged):
    check_form(monkeypatch, logged, forward, flash1, plain())
    assert len(settled()) == 1


@pytest.mark.parametrize("which", ["query", "key", "value"])
def test_other_strides_and_alignments_are_other_forms(which, monkeypatch, logged):
    call = plain()
    check_form(monkeypatch, logged, forward, flash2, call)
    tensor = getattr(call, which)
    B, H, L, D = tensor.shape
    others = (
        tensor.new_zeros(B, L, H, D).transpose(1, 2),
        tensor.new_zeros(1, 1, L, D).expand(B, H, L, D),
        tensor.new_zeros(B * H * L * D + 1)[1:].reshape(tensor.shape),
        tensor.new_zeros(B, H, D, L).mT,
        torch.randn(B, H, L, D, dtype=torch.complex64).conj().imag.to(tensor.dtype),
    )
    for other in others:
        check_form(monkeypatch, logged, forward, flash2, call.replace(**{which: other}))


def test_one_tensor_in_several_places(monkeypatch, logged):
    """Key and value are one tensor in some calls of equal sizes and not in others."""
    call = plain(Hq=2)
    for values in (call.value, call.key, call.value, call.key):
        same = call.replace(value=values)
        for _ in range(3):
            check_launches(monkeypatch, logged, forward, flash2, same)


@pytest.mark.filterwarnings("ignore:All-NaN")
def test_results_are_computed(monkeypatch):
    """In the interpreter, to the bit, with other data in each call and plans in the later ones."""
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    for n in range(4):
        tensors = [normal(1, 2, 18, 16), normal(1, 1, 18, 16), normal(1, 1, 18, 16)]
        tensors[n % 3][0, 0, 17, 3] = float("nan")  # seen by the last query alone
        leaves = [x.requires_grad_() for x in tensors]
        sink = normal(2).requires_grad_()
        ours = limelight.attention(*leaves, pattern=Causal(), sink=sink, backend="flash2")
        grad = normal(*ours.shape)
        found = torch.autograd.grad(ours, [*leaves, sink], grad)
        with monkeypatch.context() as patch:
            patch.setattr(plans, "form", lambda *_: None)
            plain = limelight.attention(*leaves, pattern=Causal(), sink=sink, backend="flash2")
            expected = torch.autograd.grad(plain, [*leaves, sink], grad)
        for a, b in zip((ours, *found), (plain, *expected), strict=True):
            assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    assert len(settled()) == 2


def test_what_changes_in_place_is_read_anew():
    """A mask, lengths and a sink are tensors of the user, who may write to them between two calls."""
    q, k, v = torch.randn(3, 1, 1, 20, 16).unbind()
    mask, lengths, sink = torch.rand(20, 20) < 0.5, torch.tensor([20]), torch.zeros(1)
    for n in range(4):
        mask[n] = ~mask[n]
        lengths[0] = 20 - n
        sink[0] = n
        for change in ({"pattern": Explicit(mask)}, {"layout": Padded(lengths)}, {"sink": sink}):
            ours = limelight.attention(q, k, v, backend="flash2", **change)
            truth = limelight.attention(*(x.double() for x in (q, k, v)), backend="reference", **change)
            assert torch.allclose(ours.double(), truth, atol=1e-5)


def test_plans_keep_no_tensor_of_a_call_alive(logged):
    kept = {}
    for name, make in FORMS.items():
        call = make()
        for _ in range(4):
            found = forward(flash2, call)
        kept[name] = [x.untyped_storage() for x in (call.query, call.key, call.value, *call.operands, *found)]
    del call, found
    logged.clear()
    gc.collect()
    assert not plans._of_tables
    references = {name: [storage_references(x) for x in storages] for name, storages in kept.items()}
    assert references == {name: [1] * len(storages) for name, storages in kept.items()}


def test_the_number_of_plans_is_bounded(monkeypatch, logged):
    monkeypatch.setattr(plans._of_arithmetic, "most", 5)
    for length in range(1, 12):
        for _ in range(3):
            forward(flash2, plain(Lk=64 + length))
    assert len(plans._of_arithmetic) == 5


def test_plans_can_be_switched_off(monkeypatch, logged):
    monkeypatch.setattr(plans, "ENABLED", False)
    x = torch.randn(1, 1, 16, 16)
    for _ in range(3):
        limelight.attention(x, x, x, backend="flash2")
    assert not len(plans._of_arithmetic)


def test_results_and_workspace_are_never_shared(logged):
    call = plain(Lq=1, Lk=4000)
    kept = [forward(flash2, call) for _ in range(6)]
    places = [x.untyped_storage().data_ptr() for pair in kept for x in pair]
    assert len(set(places)) == len(places)


def test_threads_repeat_one_plan(logged):
    calls = [again(plain()) for _ in range(8)]
    for call in calls[:3]:
        forward(flash2, call)
    wrong, done = [], []

    def work(call):
        for _ in range(50):
            output, _ = forward(flash2, call)
            done.append((call, output))

    logged.clear()
    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    launched = {arguments[0]: arguments[1:3] for _, _, arguments, _ in logged}
    assert launched == {call.query.data_ptr(): (call.key.data_ptr(), call.value.data_ptr()) for call in calls}
    assert len(logged) == 2 * len(done)


def test_profilers_see_every_launch(monkeypatch, logged):
    """A hook that a profiler gives to Triton is called by Triton's dispatch alone."""
    hooks = []
    monkeypatch.setattr(launching, "driver", lambda: launching.Driver(lambda device: 7, lambda: bool(hooks)))
    call = plain()
    for _ in range(3):
        forward(flash2, call)
    hooks.append(print)
    logged.clear()
    forward(flash2, call)
    assert all(isinstance(arguments[0], torch.Tensor) for _, _, arguments, _ in logged)


def test_what_a_plan_cannot_hold_is_computed_each_time(logged):
    """An observation, a seed that is a number, and a function among the settings."""
    custom = RelativeBias(torch.rand(4, 3), lambda distance: distance.clamp(0, 2))
    for change in ({"dropout": 0.5, "seed": 4}, {"scores": (custom,)}):
        for _ in range(5):
            forward(flash2, plain(**change))
    assert not settled()


def test_every_kernel_is_launched_by_launch():
    """A launch that a plan has not seen would be left out where it is repeated."""
    folder = Path(gpu.__file__).parent
    for path in [*folder.glob("*.py"), *(folder / "hopper").glob("*.py")]:
        if path.name != "launching.py":
            assert not re.findall(r"\b\w*(?:kernels|schedule|plan)\w*(?:\.\w+)?\[.*\]\(", path.read_text()), path
