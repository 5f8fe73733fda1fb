"""`Repeated`: the same numbers as `limelight.attention`, whatever differs between one call and the next."""

import pytest
import torch

from limelight import ArgumentError, Causal, Packed, Paged, SoftCap, Window, attention
from limelight.forms.settings import Settings
from limelight.operator.repeated import Repeated

PAGES = Paged((1, 5, 2), (20, 5, 40), [[3, 0, -1], [1, -1, -1], [2, 5, 4]])
SETTINGS = {
    "packed": Settings(layout=Packed((3, 5)), pattern=Causal(), scale=0.3),
    "paged": Settings(layout=PAGES, pattern=Window(9, 0), scores=(SoftCap(2.0),)),
    "rows": Settings(pattern=Causal()),
}


def tensors(dtype, seed, paged, Lq=8, Hq=4):
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 2, 16, 16) if paged else (1, 2, 8, 16)
    draw = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    return draw(1, Lq, Hq, 16).transpose(1, 2), draw(*shape), draw(*shape)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_call_is_that_of_attention(name, dtype):
    settings, paged = SETTINGS[name], name == "paged"
    repeated = Repeated(settings)
    for seed, sink, layer_dtype, Hq in (
        (0, None, dtype, 4),
        (1, None, dtype, 4),
        (2, torch.randn(4), dtype, 4),
        (3, torch.randn(4), dtype, 4),
        (4, None, torch.float64, 4),
        (5, None, dtype, 2),
        (6, None, dtype, 2),
    ):
        query, key, value = tensors(layer_dtype, seed, paged, Hq=Hq)
        if seed == 6:  # other strides
            key, value = (torch.cat([x, x], -1)[..., 16:] for x in (key, value))
        whole = torch.full((8, Hq, 20), torch.nan, dtype=layer_dtype)
        repeated.into(whole[..., :16].transpose(0, 1)[None], query, key, value, sink)
        expected = attention(query, key, value, **settings.replace(sink=sink).__dict__)
        assert torch.equal(whole[..., :16].transpose(0, 1)[None], expected), seed
        assert whole[..., 16:].isnan().all()


def test_gradients_are_not_lost():
    repeated = Repeated(SETTINGS["rows"])
    query, key, value = tensors(torch.float32, 0, False)
    output = torch.empty_like(query)
    repeated.into(output, query, key, value, None)
    query.requires_grad_()
    output = torch.empty_like(query)
    repeated.into(output, query, key, value, None)
    assert output.requires_grad


def test_wrong_arguments_are_refused():
    repeated = Repeated(SETTINGS["rows"])
    query, key, value = tensors(torch.float32, 0, False)
    output = torch.empty_like(query)
    repeated.into(output, query, key, value, None)
    for other in ((query, key[:, :, :3], value), (query, key.double(), value), (query[:, :, :, :3], key, value)):
        with pytest.raises(ArgumentError):
            repeated.into(output, *other, None)
    with pytest.raises(ArgumentError, match="sink"):
        repeated.into(output, query, key, value, torch.zeros(3))
