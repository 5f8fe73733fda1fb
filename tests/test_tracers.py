"""Whatever of PyTorch records a call, or looks on, sees one operator; what it gives is right for other inputs too."""

import functools
import math
import subprocess
import sys

import pytest
import torch
from functorch.compile import aot_module, nop
from torch import nn
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

import limelight
from limelight import (
    ALiBi,
    ArgumentError,
    BackendError,
    Causal,
    Keys,
    Observe,
    Packed,
    Padded,
    Predicate,
    SoftCap,
    Window,
    compat,
    fused,
    models,
)
from limelight.integrations.torch import sdpa
from limelight.nn import MultiHead, RMSNorm, Rotary, SplitHalves
from limelight.tensors import tracing

B, H, D = 2, 4, 8
pytestmark = pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning",
    "ignore:Dynamo does not know:UserWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning",  # PyTorch's own, of fake tensors
)


def inputs(length=5, batch=B):
    return torch.randn(batch, H, length, D, dtype=torch.float64)


def defined(q, k, v, seen=None, bias=0.0, sink=None):
    """``softmax(q k / sqrt(D) + bias) v`` over what is seen, and zero where nothing is."""
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + bias
    if seen is not None:
        scores = scores.masked_fill(~seen, -1e9)
    if sink is not None:
        scores = torch.cat([scores, sink[:, None, None].expand(*scores.shape[:-1], 1)], -1)
    weights = scores.softmax(-1)[..., : k.shape[2]]
    return (weights if seen is None else weights.where(seen, 0.0)) @ v


def distance(x):
    at = torch.arange(x.shape[2])
    return at[:, None] - at


class Plain(nn.Module):
    def forward(self, x):
        return limelight.attention(x, x, x)

    def definition(self, x):
        return defined(x, x, x)


class Operands(nn.Module):
    """Tensors of its own: slopes and a sink, with gradients."""

    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(H, dtype=torch.float64))
        self.sink = nn.Parameter(torch.randn(H, dtype=torch.float64))

    def forward(self, x):
        pattern = Causal() & (Window(2, 0) | Keys(1))
        return limelight.attention(x, x, x, pattern=pattern, scores=[ALiBi(self.slopes)], sink=self.sink)

    def definition(self, x):
        back = distance(x)
        seen = (back >= 0) & ((back <= 2) | (torch.arange(x.shape[2]) == 0))
        return defined(x, x, x, seen, -self.slopes[:, None, None] * back.abs(), self.sink)


class Lengths(nn.Module):
    """A layout whose numbers a check would read."""

    def __init__(self):
        super().__init__()
        self.register_buffer("lengths", torch.tensor([4, 5]))

    def forward(self, x):
        return limelight.attention(x, x, x, layout=Padded(self.lengths))

    def definition(self, x):
        there = torch.arange(x.shape[2]) < self.lengths[:, None]
        return defined(x, x, x, there[:, None, :, None] & there[:, None, None, :])


class EverySecondKey(nn.Module):
    def forward(self, x):
        second = Predicate(lambda at: (at.query_index - at.key_index) % 2 == 0)
        return limelight.attention(x, x, x, pattern=Causal() & second)

    def definition(self, x):
        return defined(x, x, x, (distance(x) >= 0) & (distance(x) % 2 == 0))


class Compat(nn.Module):
    def forward(self, x):
        return compat.scaled_dot_product_attention(x, x, x, is_causal=True)

    def definition(self, x):
        return defined(x, x, x, distance(x) >= 0)


class Observed(nn.Module):
    """Recorded as PyTorch's own operations."""

    def forward(self, x):
        output, seen = limelight.attention(x, x, x, observe=Observe(entropy=True))
        return output * seen.entropy[..., None]

    def definition(self, x):
        weights = (x @ x.mT / math.sqrt(D)).softmax(-1)
        return weights @ x * -(weights * weights.log()).sum(-1, keepdim=True)


class Layer(nn.Module):
    """`MultiHead` with all that is computed beside attention."""

    def __init__(self):
        super().__init__()
        norm = functools.partial(RMSNorm, epsilon=1e-6)
        self.layer = MultiHead(
            H * D,
            query_heads=H,
            key_value_heads=H,
            head_width=D,
            pattern=Causal(),
            rotary=Rotary(D, pairing=SplitHalves()),
            head_norm=norm,
        )
        self.double()

    def forward(self, x):
        return self.layer(x.transpose(1, 2).flatten(2))

    def definition(self, x):
        states, layer = x.transpose(1, 2).flatten(2), self.layer
        split = lambda t: t.unflatten(2, (H, D)).transpose(1, 2)  # noqa: E731
        norm = lambda t, weight: t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight  # noqa: E731
        angles = torch.arange(x.shape[2]).double()[:, None] * 10_000.0 ** (-torch.arange(0, D, 2).double() / D)
        cos, sin = angles.cos(), angles.sin()

        def rotated(t):
            first, second = t.chunk(2, -1)
            return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

        q, k, v = (split(part(states)) for part in (layer.query, layer.key, layer.value))
        q, k = rotated(norm(q, layer.query_norm.weight)), rotated(norm(k, layer.key_norm.weight))
        return layer.output(defined(q, k, v, distance(x) >= 0).transpose(1, 2).flatten(2))


SUBJECTS = [Plain, Operands, Lengths, EverySecondKey, Compat, Observed, Layer]
subjects = pytest.mark.parametrize("kind", SUBJECTS)
one_operator = pytest.mark.parametrize("kind", [kind for kind in SUBJECTS if kind is not Observed])


def gradients(function, x):
    x = x.detach().clone().requires_grad_()
    function(x).sin().sum().backward()
    return x.grad


def assert_right(recorded, subject, *lengths):
    """Numbers and gradients of other inputs than those that were recorded."""
    for length in lengths:
        x = inputs(length)
        torch.testing.assert_close(recorded(x), subject.definition(x))
        torch.testing.assert_close(gradients(recorded, x), gradients(subject.definition, x))


# --- Recorders ------------------------------------------------------------------------------------------------------


def fx(mode, **settings):
    def record(subject):
        graph = make_fx(subject, tracing_mode=mode, **settings)(inputs())
        return graph, "torch.ops.limelight.attention" in graph.code

    return record


def jit(subject):
    traced = torch.jit.trace(subject, (inputs(),))
    return traced, "limelight::attention" in str(traced.inlined_graph)


def exported(strict):
    def record(subject):
        sizes = None if isinstance(subject, Lengths) else ({2: torch.export.Dim("L", min=2, max=64)},)
        program = torch.export.export(subject, (inputs(),), dynamic_shapes=sizes, strict=strict)
        return program.module(), "torch.ops.limelight.attention" in program.graph_module.code

    return record


def compiled(backend):
    def record(subject):
        torch._dynamo.reset()
        graphs = []

        def spy(graph, examples):
            graphs.append(graph.code)
            return torch._dynamo.lookup_backend(backend)(graph, examples)

        f = torch.compile(subject, backend=spy, fullgraph=True)
        f(inputs())
        return f, "torch.ops.limelight.attention" in graphs[0]

    return record


def traced_ahead(subject):
    """AOTAutograd by itself: functional and fake tensors, without the compiler in front of it."""
    graphs = []
    f = aot_module(subject, lambda graph, _: graphs.append(graph.code) or nop(graph, _))
    f(inputs().requires_grad_())
    return f, "torch.ops.limelight.attention" in graphs[0]


FIXED = {"make_fx real": fx("real"), "make_fx pre-dispatch": fx("real", pre_dispatch=True), "aot": traced_ahead}
FIXED["make_fx fake"] = fx("fake", _allow_non_fake_inputs=True)
CHANGING = {
    "make_fx symbolic": fx("symbolic", _allow_non_fake_inputs=True),
    "jit.trace": jit,
    "export strict": exported(strict=True),
    "export": exported(strict=False),
    "compile eager": compiled("eager"),
    "compile aot_eager": compiled("aot_eager"),
}


@subjects
@pytest.mark.parametrize("how", [*FIXED, *CHANGING])
def test_every_tracer_records_the_operator(how, kind):
    subject = kind()
    recorded, has_operator = (FIXED | CHANGING)[how](subject)
    assert has_operator == (kind is not Observed)
    assert_right(recorded, subject, 5, *((9,) if how in CHANGING and kind is not Lengths else ()))


def test_inductor():
    subject = Operands()
    recorded, has_operator = compiled("inductor")(subject)
    assert has_operator
    assert_right(recorded, subject, 5, 9)


@subjects
def test_transforms_are_recorded(kind):
    subject, x, t = kind(), inputs(), inputs()
    loss = lambda f: lambda x: f(x).sin().sum()  # noqa: E731
    forms = {
        "grad": lambda f: torch.func.grad(loss(f)),
        "vmap": lambda f: lambda x: torch.vmap(f, in_dims=1)(x[:, None].repeat(1, 2, 1, 1, 1)),
        "jvp": lambda f: lambda x: torch.func.jvp(f, (x,), (t,))[1],
        "autograd": lambda f: lambda x: torch.autograd.grad(loss(f)(y := x.detach().requires_grad_()), y)[0],
    }
    for name, form in forms.items():
        graph = make_fx(form(subject))(inputs())
        torch.testing.assert_close(graph(x), form(subject.definition)(x), msg=f"{name} of {kind.__name__}")


def backward_pass(out, x, grad):
    return torch.autograd.grad(out, x, grad, retain_graph=True)[0]


def test_a_gradient_is_recorded_where_its_forward_pass_was_computed():
    """The backward pass of an eager call, of attention and of the steps beside it."""
    gate, weight = nn.functional.silu, torch.rand(D, dtype=torch.float64)
    steps = {
        "plain": lambda x: limelight.attention(x, x, x, pattern=Causal()),
        "operands": lambda x: limelight.attention(x, x, x, scores=[ALiBi(torch.arange(H).double())]),
        "norm": lambda x: fused.rms_norm(x, weight, 1e-6),
        "gate": lambda x: fused.gated(gate, x, x.sin()),
        "product": lambda x: fused.product(x, torch.ones(3, D).double()),
    }
    for name, step in steps.items():
        x = inputs().requires_grad_()
        out = step(x)
        backward = functools.partial(backward_pass, out, x)
        graph, grad = make_fx(backward)(torch.randn_like(out)), torch.randn_like(out)
        torch.testing.assert_close(graph(grad), backward(grad), msg=name)
        torch._dynamo.reset()
        with compiled_autograd._enable(torch.compile(backend="eager")):
            step(leaf := inputs().requires_grad_()).square().sum().backward()
        torch.testing.assert_close(leaf.grad, torch.autograd.grad(step(leaf).square().sum(), leaf)[0], msg=name)


def test_a_traced_graph_is_loaded_by_a_new_process(tmp_path):
    layer, x = Layer(), inputs(7)
    torch.jit.save(torch.jit.trace(layer, (inputs(),)), str(tmp_path / "layer.jit"))
    sizes = ({2: torch.export.Dim("L", min=2, max=64)},)
    torch.export.save(torch.export.export(layer, (inputs(),), dynamic_shapes=sizes), tmp_path / "layer.pt2")
    torch.save((x, layer.definition(x)), tmp_path / "truth.pt")
    model = models.new("t5", vocab_size=9, d_model=16, num_layers=1, num_heads=2, d_kv=8, d_ff=32).eval()
    ids = torch.arange(7)[None]
    torch.export.save(torch.export.export(model, (ids,), {"source": ids}), tmp_path / "model.pt2")
    torch.save((ids, model(ids, source=ids).logits), tmp_path / "logits.pt")
    program = f"""
import sys, torch, limelight
x, truth = torch.load({str(tmp_path / "truth.pt")!r})
torch.testing.assert_close(torch.jit.load({str(tmp_path / "layer.jit")!r})(x), truth)
torch.testing.assert_close(torch.export.load({str(tmp_path / "layer.pt2")!r}).module()(x), truth)
ids, truth = torch.load({str(tmp_path / "logits.pt")!r})
found = torch.export.load({str(tmp_path / "model.pt2")!r}).module()(ids, source=ids)
assert found.encoded.states.shape == (1, 7, 16) and "limelight.models" not in sys.modules
torch.testing.assert_close(found.logits, truth)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_ahead_of_time_inductor_takes_a_plain_layer(tmp_path):
    layer = MultiHead(16, query_heads=4, key_value_heads=2, head_width=4, pattern=Causal()).eval()
    sizes = ({1: torch.export.Dim("L", min=2, max=64)},)
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(2, 6, 16),), dynamic_shapes=sizes)
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
        states = torch.randn(2, 11, 16)
        torch.testing.assert_close(torch._inductor.aoti_load_package(package)(states), layer(states))


def test_jit_trace_warns_of_nothing_that_is_ours():
    program = """
import warnings, torch, limelight
from limelight.nn import MultiHead, Rotary
layer = MultiHead(
    16, query_heads=4, key_value_heads=2, head_width=4, pattern=limelight.Causal(), rotary=Rotary(4)
)
with warnings.catch_warnings(record=True) as caught:
    torch.jit.trace(layer, (torch.randn(2, 6, 16),))
assert not [str(w.message) for w in caught if issubclass(w.category, torch.jit.TracerWarning)], caught
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_a_recorded_dropout_draws_anew_at_each_run():
    f = lambda x: limelight.attention(x, x, x, dropout=0.5)  # noqa: E731
    x = inputs(16)
    for name, recorded in {"jit.trace": torch.jit.trace(f, (x,), check_trace=False), "make_fx": make_fx(f)(x)}.items():
        found = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            found.append(recorded(x))
        torch.manual_seed(1)
        torch.testing.assert_close(found[0], f(x), msg=name)
        assert torch.equal(found[0], found[1]), name
        assert not torch.equal(found[0], found[2]), name


def test_symbolic_trace_records_the_call_with_its_descriptions():
    slopes = torch.rand(H).double()

    def f(x):
        output, seen = limelight.attention(
            x, x, x, layout=Packed((2, 3)), pattern=Causal() & Window(2, 0), scores=[ALiBi(slopes), SoftCap(3.0)],
            observe=Observe(entropy=True),
        )  # fmt: skip
        return output, seen.entropy

    graph = torch.fx.symbolic_trace(f)
    assert "limelight_operator_attention_attention(" in graph.code
    x = inputs()
    for found, truth in zip(graph(x), f(x), strict=True):
        torch.testing.assert_close(found, truth)
    with pytest.raises(limelight.ArgumentError, match=r"`context` must be a ForwardContext.* it is Proxy\(context\)"):
        torch.fx.symbolic_trace(MultiHead(16, query_heads=4, key_value_heads=2, head_width=4))


def test_jit_script_is_refused():
    def f(x: torch.Tensor) -> torch.Tensor:
        return limelight.attention(x, x, x)

    with pytest.raises(torch.jit.frontend.NotSupportedError, match="attention"):
        torch.jit.script(f)


# --- Shapes without numbers -------------------------------------------------------------------------------------------


@subjects
def test_fake_tensors_and_meta_tensors_have_the_shapes_of_the_result(kind):
    x = inputs()
    truth = kind()(x)
    subject = kind()
    with FakeTensorMode(allow_non_fake_inputs=True):
        within = subject(fake := inputs().requires_grad_())
        within.sum().backward()
    assert fake.grad.shape == x.shape
    outside = FakeTensorMode(allow_non_fake_inputs=True)
    meta = kind().to("meta")(x.to("meta").requires_grad_())
    meta.sum().backward()
    for found in (within, kind()(outside.from_tensor(x)), meta):
        assert isinstance(found, FakeTensor) or found.is_meta
        assert (found.shape, found.dtype, found.stride()) == (truth.shape, truth.dtype, truth.stride())


def test_a_long_call_on_the_meta_device_costs_nothing():
    q = torch.empty(1, 32, 2**20, 128, device="meta", dtype=torch.bfloat16)
    assert limelight.attention(q, q, q, pattern=Causal()).shape == q.shape


@subjects
def test_functional_tensors(kind):
    subject, x = kind(), inputs()
    with FunctionalTensorMode():
        found = torch._from_functional_tensor(subject(FunctionalTensor.to_functional(x)).elem)
    torch.testing.assert_close(found, subject.definition(x))


@one_operator
def test_functionalize(kind):
    subject = kind()
    assert_right(torch.func.functionalize(subject), subject, 5, 9)
    graph = make_fx(torch.func.functionalize(subject))(inputs())
    assert "torch.ops.limelight.attention" in graph.code
    assert_right(graph, subject, 5)


def test_functionalize_is_refused_where_pytorch_has_no_rule():
    x = inputs()
    with pytest.raises(BackendError, match=r"functionalize, a call with observations .* Leave functionalize out"):
        torch.func.functionalize(Observed())(x)
    with pytest.raises(BackendError, match=r"functionalize, a call with a transform of torch\.func around it"):
        torch.func.functionalize(torch.func.grad(lambda x: Plain()(x).sum()))(x)


# --- Modes ------------------------------------------------------------------------------------------------------------


class Log(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@subjects
def test_a_mode_looks_on_and_changes_nothing(kind):
    subject, x = kind(), inputs()
    with Log() as log, FlopCounterMode(display=False), Log():
        assert_right(subject, subject, 5)
    assert ("limelight.attention.default" in log.seen) == (kind is not Observed)
    with Log():
        transformed = torch.vmap(subject)(torch.stack([x, -x])), torch.func.grad(lambda x: subject(x).sin().sum())(x)
    torch.testing.assert_close(transformed[0], torch.stack([subject.definition(x), subject.definition(-x)]))
    torch.testing.assert_close(transformed[1], gradients(subject.definition, x))


@one_operator
def test_selective_checkpointing_can_name_the_operator(kind):
    subject, x, runs = kind(), inputs(), []

    def policy(ctx, function, *args, **kwargs):
        if function is torch.ops.limelight.attention.default:
            runs.append(ctx.is_recompute)
            return CheckpointPolicy.MUST_SAVE
        return CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    f = lambda x: checkpoint(subject, x, use_reentrant=False, context_fn=contexts)  # noqa: E731
    torch.testing.assert_close(gradients(f, x), gradients(subject.definition, x))
    assert runs[0] is False


def test_a_named_backend_is_taken_under_a_mode_and_refused_by_a_recorder():
    x = inputs()
    f = lambda x: limelight.attention(x, x, x, backend="reference")  # noqa: E731
    with Log() as log:
        torch.testing.assert_close(f(x), defined(x, x, x))
    assert "limelight.attention.default" not in log.seen
    with pytest.raises(BackendError, match="cannot be named under make_fx"):
        make_fx(f)(x)
    with pytest.raises(BackendError, match=r"cannot be named under torch\.jit\.trace"):
        torch.jit.trace(f, (x,))
    with limelight.watching(Observe(entropy=True)), pytest.raises(RuntimeError, match="watching"):
        make_fx(Plain())(x)
    with limelight.watching(Observe(entropy=True)) as seen, Log():
        Plain()(x)
    weights = (x @ x.mT / math.sqrt(D)).softmax(-1)
    torch.testing.assert_close(seen["attention.0"].entropy, -(weights * weights.log()).sum(-1))


def test_wrong_arguments_are_found_while_a_call_is_recorded_or_when_it_runs():
    x = inputs()
    with pytest.raises(ArgumentError, match="key"):
        make_fx(lambda q, k: limelight.attention(q, k, k))(x, x[:1])
    f = lambda x, lengths: limelight.attention(x, x, x, layout=Padded(lengths))  # noqa: E731
    graph = make_fx(f)(x, torch.tensor([1, 5]))
    with pytest.raises(ArgumentError, match="query_lengths"):
        graph(x, torch.tensor([1, 6]))
    long = torch.empty(1, 1, 2**15, 8, device="meta")
    with pytest.raises(BackendError, match="the meta device, a call with observations"):
        limelight.attention(long, long, long, observe=Observe(entropy=True))


# --- PyTorch's own layer ----------------------------------------------------------------------------------------------


def test_a_model_recorded_inside_sdpa_is_left_to_pytorch():
    layer = nn.MultiheadAttention(16, 4, batch_first=True).double()
    model = lambda x: layer(x, x, x, need_weights=False)[0]  # noqa: E731
    x, other = torch.randn(2, 2, 5, 16, dtype=torch.float64)
    with sdpa() as calls:
        graph = make_fx(model)(x)
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert model(torch.randn(2, 5, 16, dtype=torch.float64)).shape == x.shape
        functional = torch.func.functionalize(model)(other)
    assert not calls.taken
    assert any("make_fx" in why for why in calls.left)
    for found in (graph(other), functional):
        torch.testing.assert_close(found, model(other))


# --- What is asked ----------------------------------------------------------------------------------------------------


def test_seen_by_names_what_looks_on():
    x = inputs()
    found = []

    def note(x):
        found.append(tracing.seen_by(x))
        return x + 1

    note(x)
    with Log():
        note(x)
    make_fx(note)(x)
    make_fx(note, tracing_mode="symbolic")(x)
    make_fx(note, pre_dispatch=True)(x)
    torch.func.functionalize(note)(x)
    torch.vmap(note)(x)
    with FakeTensorMode() as mode:
        note(inputs())
    note(mode.from_tensor(x))
    note(x.to("meta"))
    torch.jit.trace(note, (x,), check_trace=False)
    assert found == [
        "", "a TorchDispatchMode", "make_fx", "make_fx", "make_fx", "torch.func.functionalize", "", "FakeTensorMode",
        "a FakeTensor", "the meta device", "torch.jit.trace",
    ]  # fmt: skip


def test_what_is_not_compiled_is_called_between_two_graphs():
    torch.compiler.reset()
    seen = []

    @tracing.uncompiled("it counts in Python")
    def counted(x, *, more):
        seen.append((torch.compiler.is_compiling(), type(x)))
        return x + more

    def subject(x):
        return counted(x * 2, more=1) * 3

    compiled = torch.compile(subject, backend="eager")
    for _ in range(2):
        assert compiled(torch.ones(3)).tolist() == [9.0] * 3
    assert seen == [(False, torch.Tensor)] * 2
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="it counts in Python"):
        torch.compile(subject, backend="eager", fullgraph=True)(torch.ones(3))
