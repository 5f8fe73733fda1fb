"""The settings of a call, and tensors that are refused by the name of their argument."""

import dataclasses
import inspect
import re

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import limelight
from limelight.forms.settings import Settings, SettingsButObserve, SettingsFields
from limelight.operator.keywords import ELSEWHERE


@pytest.fixture
def mesh(tmp_path):
    """Of one rank, this process."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_distributed_tensor_is_refused_by_name(mesh):
    x = torch.randn(1, 2, 8, 4)

    def sharded(*shape, dtype=torch.float32):
        return distribute_tensor(torch.ones(shape, dtype=dtype), mesh, [Shard(0)])

    for name, query, settings in [
        ("query", sharded(1, 2, 8, 4), {}),
        ("query", sharded(2, 8, 4), {}),
        ("key", x, {}),
        ("sink", x, {"sink": sharded(2)}),
        ("scores", x, {"scores": (limelight.Bias(sharded(8, 8)),)}),
        ("pattern", x, {"pattern": limelight.Explicit(sharded(8, 8, dtype=torch.bool))}),
        ("layout", x, {"layout": limelight.KeyMask(sharded(1, 8, dtype=torch.bool))}),
    ]:
        key = query if name == "query" else sharded(1, 2, 8, 4) if name == "key" else x
        with pytest.raises(limelight.ArgumentError, match=rf"`{name}` must be a local tensor.*to_local"):
            limelight.attention(query, key, key, **settings)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
def test_a_nested_tensor_is_refused_by_name(layout):
    x = torch.randn(1, 2, 8, 4)
    nested = torch.nested.nested_tensor([torch.randn(3), torch.randn(2)], layout=layout)
    refused = pytest.raises(limelight.ArgumentError, match="it is a nested tensor")
    with refused:
        limelight.attention(x, x, x, sink=nested)
    with refused:
        limelight.merge([nested], [nested])
    for make in (limelight.Bias, limelight.ALiBi, limelight.Additive, limelight.Explicit, limelight.Prefix):
        with refused:
            limelight.attention(x, x, x, pattern=limelight.Causal() | make(nested))
    with refused:
        limelight.Observe(features=nested)


def test_settings_have_the_fields_that_type_checkers_see():
    names = [field.name for field in dataclasses.fields(Settings)]
    parameters = inspect.signature(limelight.attention).parameters
    assert list(SettingsFields.__annotations__) == names
    assert list(SettingsButObserve.__annotations__) == [name for name in names if name != "observe"]
    assert set(parameters) - set(names) == {"query", "key", "value", "backend", "name", "unknown"}
    assert set(names) < set(parameters)


HERE = {  # an argument of another library, and the settings that its hint names
    "is_causal": lambda q, k: (
        {"pattern": limelight.Causal(), "layout": limelight.Aligned(query_start=0)},
        torch.nn.functional.scaled_dot_product_attention(q, k, k, is_causal=True),
    ),
    "attn_mask": lambda q, k: (
        {"pattern": limelight.Explicit(torch.ones(5, 6).tril().bool())},
        torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=torch.ones(5, 6).tril().bool()),
    ),
    "softmax_scale": lambda q, k: (
        {"scale": 0.3},
        limelight.compat.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, k)), softmax_scale=0.3).transpose(1, 2),
    ),
    "window_size": lambda q, k: (
        {"pattern": limelight.Window(1, 0)},
        limelight.compat.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, k)), window_size=(1, 0)).transpose(1, 2),
    ),
    "causal": lambda q, k: (
        {"pattern": limelight.Causal()},
        limelight.compat.flash_attn_func(*(x.transpose(1, 2) for x in (q, k, k)), causal=True).transpose(1, 2),
    ),
}


@pytest.mark.parametrize("name", HERE)
def test_a_hint_for_an_argument_of_another_library_is_right(name):
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 6, 8)
    settings, expected = HERE[name](q, k)
    torch.testing.assert_close(limelight.attention(q, k, k, **settings), expected)
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'") as caught:
        limelight.attention(q, k, k, **{name: True})
    assert all(f"{setting}=" in str(caught.value) for setting in settings)


@pytest.mark.parametrize("function", [limelight.attention, limelight.explain])
def test_arguments_of_other_libraries(function):
    x = torch.randn(1, 2, 5, 8)
    for name, (library, here) in ELSEWHERE.items():
        with pytest.raises(TypeError, match=f"`{name}` is {library}'s") as caught:
            function(x, x, x, **{name: None})
        assert here in str(caught.value)
    with pytest.raises(TypeError, match="Did you mean `pattern`"):
        function(x, x, x, patern=limelight.Causal())
    with pytest.raises(TypeError, match=r"'zzz'\. It has sink, scores"):
        function(x, x, x, zzz=1)


def test_every_name_in_a_hint_is_one_of_ours():
    parameters = inspect.signature(limelight.attention).parameters
    for name, (_, here) in ELSEWHERE.items():
        assert set(re.findall(r"\b(\w+)=", here)) <= {*parameters, "query_start", "logsumexp", "rows"}, name
        for found in re.findall(r"\b([A-Z]\w+)\(", here):
            assert hasattr(limelight, found), name
        for found in re.findall(r"limelight\.compat\.(\w+)", here):
            assert getattr(limelight.compat, found), name
