"""The settings of a call, and tensors that are refused by the name of their argument."""

import dataclasses
import inspect

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

import limelight
from limelight.forms.settings import Settings, SettingsButObserve, SettingsFields


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
    assert set(parameters) - set(names) == {"query", "key", "value", "backend", "name"}
    assert set(names) < set(parameters)
