"""The steps beside attention: against PyTorch's own operations in float64, on every instruction set."""

import warnings

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from limelight import ArgumentError, fused
from limelight.backends import native
from limelight.nn import Rotary, SplitHalves

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

AVAILABLE = native.instruction_sets()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@pytest.fixture(params=["generic", "avx2", "avx512", "amx", "wide"])
def isa(request):
    if request.param not in AVAILABLE:
        pytest.skip(f"this machine cannot run {request.param} (only {', '.join(AVAILABLE)})")
    native.select_instruction_set(request.param)
    yield request.param
    native.select_instruction_set(None)


def rotation(shape, dtype, rotated=None):
    *_, L, D = shape
    found = Rotary(rotated or D).at(torch.arange(7, 7 + L)[None], dtype)
    return found.own, found.partners


def steps(dtype, width=37, rows=5):
    """Each step with its definition and inputs of a dtype, the tensors that have gradients first."""
    torch.manual_seed(width)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64).to(dtype)  # noqa: E731
    heads = make(2, rows, 3, 24).transpose(1, 2)
    return {
        "norm": (
            lambda x, w: fused.rms_norm(x, w, 1e-5, 1.0), lambda x, w: fused.norm.definition(x, w, 1e-5, 1.0),
            (make(2, rows, width), make(width)), (),
        ),
        "gate": (
            lambda gate, up: fused.gated(functional.silu, gate, up), lambda gate, up: functional.silu(gate) * up,
            (3 * make(2, rows, width), make(2, rows, width)), (),
        ),
        "gate of tanh": (
            lambda gate, up: fused.gated(fused.gelu_tanh, gate, up), lambda gate, up: fused.gelu_tanh(gate) * up,
            (3 * make(2, rows, width), make(2, rows, width)), (),
        ),
        "rotation": (fused.rotate_halves, fused.rotation.definition, (heads,), rotation(heads.shape, dtype, 18)),
        "product": (fused.product, functional.linear, (make(9, rows, width), make(3, width), make(3)), ()),
    }  # fmt: skip


def near(ours, plain, truth, dtype):
    """As near to the truth as PyTorch's own operations in the same dtype, and a step of rounding."""
    assert ours.dtype == dtype
    if dtype is torch.float64:
        # (sums that cancel are as exact as what was summed)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-14 * max(1.0, float(truth.abs().max())))
        return
    step = torch.finfo(dtype).eps * truth.abs().clamp(min=truth.abs().mean())
    assert ((ours - truth).abs() <= 1.5 * (plain - truth).abs().max() + 2 * step).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 16, 37, 200])
@pytest.mark.parametrize("name", ["norm", "gate", "gate of tanh", "rotation"])
def test_values_and_gradients(name, width, dtype, isa):
    if isa == "wide" and dtype is not torch.float32:
        pytest.skip("wide has float32 only")
    ours, plain, inputs, constants = steps(dtype, width)[name]
    assert not fused.reasons_against(*inputs, *constants)
    found = []
    for function, to in ((ours, dtype), (plain, dtype), (plain, torch.float64)):
        leaves = [x.detach().to(to).requires_grad_() for x in inputs]
        result = function(*leaves, *[x.to(to) for x in constants])
        grad = torch.randn(result.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
        found.append((result.detach(), *torch.autograd.grad(result, leaves, grad.to(to))))
        with torch.no_grad():
            assert torch.equal(function(*leaves, *[x.to(to) for x in constants]), result)
    for each in zip(*found, strict=True):
        near(*each, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (16, 3), (37, 50), (193, 77), (576, 192)])
def test_products_read_any_matrix(inputs, outputs, dtype, isa):
    if isa == "wide" and dtype is not torch.float32:
        pytest.skip("wide has float32 only")
    torch.manual_seed(0)
    states, bias = torch.randn(2, 8, inputs).to(dtype), torch.randn(outputs).to(dtype)
    weight = torch.randn(outputs, inputs + 3).to(dtype)[:, 1 : inputs + 1]
    truth = states.double() @ weight.double().T + bias.double()
    together = fused.product(states, weight, bias)
    near(together, functional.linear(states, weight, bias), truth, dtype)
    # Neither the number of vectors nor that of threads shows in the bits.
    torch.set_num_threads(1)
    for some in (1, 2, 3, 5):
        assert torch.equal(fused.product(states[:, :some], weight, bias), together[:, :some])
    torch.set_num_threads(2)
    assert torch.equal(fused.product(states[0, 0], weight, bias), together[0, 0])
    assert torch.equal(fused.product(states, weight), fused.product(states, weight, torch.zeros(outputs, dtype=dtype)))


@pytest.fixture
def own_products(monkeypatch):
    """The library's products of matrices, also where PyTorch's would be taken."""
    monkeypatch.setattr(fused.matrices, "_FASTER_THAN_PYTORCH", frozenset(AVAILABLE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(17, 1, 1), (61, 37, 50), (500, 130, 70), (1003, 16, 129), (30, 4099, 5), (18, 64, 4)],
)
def test_products_of_matrices(rows, inputs, outputs, dtype, isa, own_products):
    if isa == "wide" and dtype is not torch.float32:
        pytest.skip("wide has float32 only")
    torch.manual_seed(0)
    states = torch.randn(rows, 2, inputs, dtype=dtype).transpose(0, 1)
    weight = torch.randn(outputs, inputs + 3, dtype=dtype)[:, 1 : inputs + 1]
    bias, grad = torch.randn(outputs, dtype=dtype), torch.randn(2, rows, outputs, dtype=dtype)
    found = []
    for function, to in ((fused.product, dtype), (functional.linear, dtype), (functional.linear, torch.float64)):
        leaves = [x.detach().to(to).requires_grad_() for x in (states, weight, bias)]
        result = function(*leaves)
        found.append((result.detach(), *torch.autograd.grad(result, leaves, grad.to(to))))
        with torch.no_grad():
            assert torch.equal(function(*leaves), result)
    assert all(ours.shape == truth.shape for ours, _, truth in zip(*found, strict=True))
    for each in zip(*found, strict=True):
        near(*each, dtype)
    # Neither the number of rows nor that of threads shows in the bits.
    torch.set_num_threads(1)
    assert torch.equal(fused.product(states, weight, bias), found[0][0])
    assert torch.equal(fused.product(states[1:, :rows], weight, bias), found[0][0][1:])
    torch.set_num_threads(2)
    # A weight that lies along its other side, and a sum that goes on.
    strided = weight.T.contiguous().T
    assert torch.equal(fused.product(states, strided, bias), found[0][0])
    total = torch.ones(outputs, inputs + 1, dtype=dtype)[:, :inputs]
    left, right = grad.reshape(-1, outputs).T, states.reshape(-1, inputs)
    fused.matmul(left, right, out=total, add=True)
    near(total, left @ right + 1, left.double() @ right.double() + 1, dtype)


def test_few_rows_are_not_read_beyond_their_end(isa, own_products):
    """What lies behind a matrix is never read: NaN there changes nothing, and what lies behind a result stays."""
    memory = torch.full((40, 40), torch.nan)
    left, right = memory[:21, :13], torch.randn(13, 9)
    left.copy_(torch.randn(21, 13))
    room = torch.full((22, 10), 7.0)
    fused.matmul(left, right, out=room[:21, :9])
    torch.testing.assert_close(room[:21, :9], left @ right)
    assert (room[21] == 7).all()
    assert (room[:, 9] == 7).all()
    left[3, 5] = torch.nan
    again = fused.matmul(left, right)
    assert again[3].isnan().all()
    assert torch.equal(again[[0, 1, 2, 4, 20]], room[[0, 1, 2, 4, 20], :9])


def test_rows_do_not_see_each_other(isa):
    x, w, m = torch.randn(6, 70), torch.randn(70), torch.randn(90, 70)
    spoilt = x.clone()
    spoilt[3] = torch.nan
    for function in (
        lambda x: fused.rms_norm(x, w, 1e-6),
        lambda x: fused.product(x, m),
        lambda x: fused.gated(functional.silu, x, x),
    ):
        before, after = function(x), function(spoilt)
        assert after[3].isnan().all()
        assert torch.equal(before[[0, 1, 2, 4, 5]], after[[0, 1, 2, 4, 5]])


def test_large_gates(isa):
    gate = torch.tensor([-1e4, -200.0, -90.0, 90.0, 200.0, 1e4, 0.0])
    for activation in fused.SIGMOID_FORMS:
        found = fused.gated(activation, gate, torch.ones(7))
        torch.testing.assert_close(found, activation(gate), rtol=1e-6, atol=1e-30)


def test_threads_do_not_show_in_a_gradient():
    states, weight = torch.randn(999, 130, requires_grad=True), torch.randn(130, requires_grad=True)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(torch.autograd.grad(fused.rms_norm(states, weight, 1e-6).sin().sum(), (states, weight)))
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", ["norm", "gate", "gate of tanh", "rotation", "product"])
def test_derivatives_of_every_kind(name, own_products):
    ours, plain, inputs, constants = steps(torch.float64, 5, 2)[name]
    leaves = [x.detach().requires_grad_() for x in inputs]
    function = lambda *x: ours(*x, *constants)  # noqa: E731
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)
    tangents = [torch.randn_like(x) for x in inputs]
    truth = torch.func.jvp(lambda *x: plain(*x, *constants), tuple(inputs), tuple(tangents))
    torch.testing.assert_close(torch.func.jvp(function, tuple(inputs), tuple(tangents)), truth)
    with forward_ad.dual_level():
        dual = function(*[forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)])
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, truth[1])
    squares = lambda f: torch.func.grad(lambda *x: f(*x).square().sum())  # noqa: E731
    torch.testing.assert_close(squares(function)(*inputs), squares(lambda *x: plain(*x, *constants))(*inputs))
    mapped = {
        "norm": (0, None), "gate": 0, "gate of tanh": 0, "rotation": (0, None, None), "product": (0, None, None),
    }[name]  # fmt: skip
    along = [x.unsqueeze(1) if name == "rotation" and n == 0 else x for n, x in enumerate((*inputs, *constants))]
    torch.testing.assert_close(torch.vmap(ours, mapped)(*along).reshape(truth[0].shape), truth[0])
    each = torch.autograd.functional.jacobian(function, tuple(inputs))
    torch.testing.assert_close(torch.autograd.functional.jacobian(function, tuple(inputs), vectorize=True), each)


@pytest.mark.parametrize("name", ["norm", "gate", "gate of tanh", "rotation", "product"])
def test_compiled_and_exported(name, own_products):
    ours, _, inputs, constants = steps(torch.float32)[name]

    class Layer(torch.nn.Module):
        def forward(self, *tensors):
            return ours(*tensors)

    truth = ours(*inputs, *constants)
    exported = torch.export.export(Layer(), (*inputs, *constants)).module()
    torch.testing.assert_close(exported(*inputs, *constants), truth)
    compiled = torch.compile(Layer(), fullgraph=True, backend="aot_eager")
    leaves = [x.detach().requires_grad_() for x in inputs]
    torch.testing.assert_close(compiled(*leaves, *constants), truth)
    grads = torch.autograd.grad(compiled(*leaves, *constants).sum(), leaves)
    torch.testing.assert_close(grads, torch.autograd.grad(ours(*leaves, *constants).sum(), leaves))
    again = torch.utils.checkpoint.checkpoint(ours, *leaves, *constants, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), leaves), grads)


def test_what_the_library_is_not_given_is_computed_all_the_same(monkeypatch):
    x, w, m = torch.randn(3, 70), torch.randn(70), torch.randn(90, 70)
    assert "different dtypes" in fused.reasons_against(x, w.double())[0]
    assert "tensor subclass" in fused.reasons_against(torch.zeros(3, dtype=torch.complex64).conj().imag)[0]
    assert "int32" in fused.reasons_against(x.int())[0]
    watched = torch.func.functionalize(lambda x: torch.tensor(len(fused.reasons_against(x))))(x)
    assert watched == 1
    with FlopCounterMode(display=False) as counted:
        assert "TorchDispatchMode" in fused.reasons_against(x)[0]
        fused.product(x, m)
    assert counted.get_total_flops() == 2 * 3 * 70 * 90
    with torch.autocast("cpu", torch.bfloat16):
        assert fused.product(x, m).dtype == torch.bfloat16
    rotation = Rotary(70).at(torch.arange(3)[None], torch.float32)
    assert isinstance(rotation.pairing, SplitHalves)
    everything = lambda: (  # noqa: E731
        fused.product(x, m), fused.rms_norm(x, w, 1e-6), fused.gated(functional.silu, x, x),
        rotation.rotate(x[None, None]),
    )  # fmt: skip
    ours = everything()
    monkeypatch.setattr(native.library, "_library", None)
    monkeypatch.setattr(native.library, "_missing", "it was not built")
    assert fused.reasons_against(x) == ["it was not built"]
    torch.testing.assert_close(everything(), ours)


def test_rows_without_numbers():
    assert fused.rms_norm(torch.ones(0, 4), torch.ones(4), 1e-6).shape == (0, 4)
    assert fused.product(torch.ones(0, 4), torch.ones(3, 4)).shape == (0, 3)
    assert fused.gated(functional.silu, torch.ones(2, 0), torch.ones(2, 0)).shape == (2, 0)
    with pytest.raises(ArgumentError, match="`weight` must fit"):
        fused.product(torch.ones(2, 8), torch.ones(3, 4))


def of_wrong_kind():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parts = [torch.ones(2, 8), torch.ones(3, 8)]
        return {
            "float": 1.0,
            "list": [1.0],
            "class": torch.Tensor,
            "nested": torch.nested.nested_tensor(parts),
            "jagged": torch.nested.nested_tensor(parts, layout=torch.jagged),
            "sparse": torch.ones(3, 8).to_sparse(),
            "quantized": torch.quantize_per_tensor(torch.ones(3, 8), 0.1, 0, torch.qint8),
            "lazy": torch.nn.LazyLinear(3).weight,
        }


STATES, MATRIX, HEADS, ANGLES = torch.ones(3, 8), torch.ones(4, 8), torch.ones(1, 2, 3, 8), torch.ones(1, 1, 3, 8)
TAKES_TENSORS = {
    ("norm", "states"): lambda x: fused.rms_norm(x, torch.ones(8), 1e-6),
    ("norm", "weight"): lambda x: fused.rms_norm(STATES, x, 1e-6),
    ("product", "states"): lambda x: fused.product(x, MATRIX),
    ("product", "weight"): lambda x: fused.product(STATES, x),
    ("product", "bias"): lambda x: fused.product(STATES, MATRIX, x),
    ("matmul", "left"): lambda x: fused.matmul(x, MATRIX.T),
    ("matmul", "right"): lambda x: fused.matmul(STATES, x),
    ("matmul", "out"): lambda x: fused.matmul(STATES, MATRIX.T, x),
    ("gated", "gate"): lambda x: fused.gated(functional.silu, x, STATES),
    ("gated", "up"): lambda x: fused.gated(functional.silu, STATES, x),
    ("another gate", "gate"): lambda x: fused.gated(functional.relu, x, STATES),
    ("gelu", "x"): fused.gelu_tanh,
    ("rotation", "heads"): lambda x: fused.rotate_halves(x, ANGLES, ANGLES),
    ("rotation", "own"): lambda x: fused.rotate_halves(HEADS, x, ANGLES),
    ("rotation", "partners"): lambda x: fused.rotate_halves(HEADS, ANGLES, x),
}


@pytest.mark.parametrize("where", TAKES_TENSORS, ids=" ".join)
def test_what_is_no_dense_tensor_is_named(where):
    for kind, value in of_wrong_kind().items():
        rule = "must (be a torch.Tensor|be a dense tensor with memory|fit|have)"
        with pytest.raises(ArgumentError, match=f"^`{where[1]}` {rule}") as caught:
            TAKES_TENSORS[where](value)
        assert caught.value, kind
