"""Every argument of a public function, given a value of another type: an error that names it.

Functions with right arguments are a table; which values are wrong follows from the annotation of an argument. What is
ignored, so that calls of other libraries need not change, is not checked.
"""

import inspect
import re

import pytest
import torch

import limelight
from limelight import compat
from limelight.compat import flex
from limelight.compat import xformers as xops
from limelight.forms.coordinates import Where
from limelight.forms.settings import SettingsFields

#: Of another type than any tensor, number, flag, description or class that is wanted; `accepted` removes the rest.
WRONG = {"None": None, "a word": "x", "a list": ["x"], "a flag": True, "a fraction": 1.5}

states = torch.ones(2, 5, 4, 8)  # (B, L, H, D)
heads = torch.ones(1, 4, 5, 8)  # (B, H, L, D)
documents, ends = torch.ones(5, 4, 8), torch.tensor([0, 2, 5])
angles = torch.ones(16, 4)
layer_input = torch.ones(3, 2, 8)
pages = torch.zeros(2, 1, dtype=torch.int64)
texts, padded = (
    xops.BlockDiagonalMask.from_seqlens([2, 3]),
    xops.BlockDiagonalPaddedKeysMask.from_seqlens([2, 3], 4, [2, 3]),
)
coordinates = limelight.Aligned().coordinates(1, 5, 5, torch.device("cpu"))
at = Where.of(coordinates, 1, 4)
three = {"query": heads, "key": heads, "value": heads}


def causal(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx


def decode(**changes):
    """`flash_attn_with_kvcache` of a new cache, since a right call changes it."""
    cache = {"k_cache": torch.ones(2, 16, 4, 8), "v_cache": torch.ones(2, 16, 4, 8)}
    return compat.flash_attn_with_kvcache(**{**cache, **changes})


decode.__signature__ = inspect.signature(compat.flash_attn_with_kvcache)


def choose_kernel(**arguments):
    with compat.sdpa_kernel(**arguments):
        pass


choose_kernel.__signature__ = inspect.signature(compat.sdpa_kernel)

TABLE = {
    "attention": (limelight.attention, three),
    "explain": (limelight.explain, three),
    "merge": (limelight.merge, {"outputs": [torch.ones(2, 3, 4)], "logsumexps": [torch.ones(2, 3)]}),
    "sdpa": (compat.scaled_dot_product_attention, three),
    "flash": (compat.flash_attn_func, {"q": states, "k": states, "v": states}),
    "flash kv": (compat.flash_attn_kvpacked_func, {"q": states, "kv": torch.ones(2, 5, 2, 4, 8)}),
    "flash qkv": (compat.flash_attn_qkvpacked_func, {"qkv": torch.ones(2, 5, 3, 4, 8)}),
    "varlen": (
        compat.flash_attn_varlen_func,
        {"q": documents, "k": documents, "v": documents, "cu_seqlens_q": ends, "cu_seqlens_k": ends},
    ),
    "varlen kv": (
        compat.flash_attn_varlen_kvpacked_func,
        {"q": documents, "kv": torch.ones(5, 2, 4, 8), "cu_seqlens_q": ends, "cu_seqlens_k": ends},
    ),
    "varlen qkv": (compat.flash_attn_varlen_qkvpacked_func, {"qkv": torch.ones(5, 3, 4, 8), "cu_seqlens": ends}),
    "kvcache": (
        decode,
        {"q": states[:, :1], "k": states[:, :1], "v": states[:, :1], "cache_seqlens": 3}
        | {"rotary_cos": angles, "rotary_sin": angles},
    ),
    "flex": (compat.flex_attention, three),
    "block mask": (compat.create_block_mask, {"mask_mod": causal, "B": None, "H": None, "Q_LEN": 5, "KV_LEN": 5}),
    "mask": (flex.create_mask, {"mod_fn": causal, "B": None, "H": None, "Q_LEN": 5, "KV_LEN": 5}),
    "block mask to": (compat.create_block_mask(causal, None, None, 5, 5).to, {"device": "cpu"}),
    "xformers": (xops.memory_efficient_attention, {"query": states, "key": states, "value": states}),
    "texts": (xops.BlockDiagonalMask.from_seqlens, {"q_seqlen": [2, 3]}),
    "texts of tensors": (xops.BlockDiagonalMask.from_tensor_list, {"tensors": [torch.ones(1, 2, 3)]}),
    "texts local": (texts.make_local_attention, {"window_size": 2}),
    "texts local right": (texts.make_local_attention_from_bottomright, {"window_size": 2}),
    "texts split": (texts.split, {"tensor": torch.ones(1, 5, 2)}),
    "texts dense": (texts.materialize, {"shape": (5, 5)}),
    "padded texts": (
        xops.BlockDiagonalPaddedKeysMask.from_seqlens,
        {"q_seqlen": [2, 3], "kv_padding": 4, "kv_seqlen": [2, 3]},
    ),
    "padded texts paged": (
        padded.make_paged,
        {"block_tables": pages, "page_size": 4, "paged_type": xops.PagedBlockDiagonalPaddedKeysMask},
    ),
    "texts with gaps": (
        xops.BlockDiagonalGappyKeysMask.from_seqlens,
        {"q_seqlen": [2, 3], "kv_seqstarts": [0, 4, 8], "kv_seqlen": [2, 3]},
    ),
    "pages": (
        xops.PagedBlockDiagonalPaddedKeysMask.from_seqlens,
        {"q_seqlen": [2, 3], "kv_seqlen": [2, 3], "block_tables": pages, "page_size": 16},
    ),
    "pages with gaps": (
        xops.PagedBlockDiagonalGappyKeysMask.from_seqlens,
        {"q_seqlen": [2, 3], "kv_seqstarts": [0, 0], "kv_seqlen": [2, 3], "block_tables": pages, "page_size": 16},
    ),
    "triangle with a bias": (xops.LowerTriangularMask().add_bias, {"bias": torch.ones(4, 4)}),
    "local": (xops.LocalAttentionFromBottomRightMask, {"window_left": 1, "window_right": 1}),
    "layer": (compat.MultiheadAttention(8, 2), {"query": layer_input, "key": layer_input, "value": layer_input}),
    "layer of torch": (compat.MultiheadAttention.from_torch, {"layer": torch.nn.MultiheadAttention(8, 2)}),
    "replace": (compat.replace_multihead_attention, {"model": torch.nn.Linear(2, 2)}),
    "kernels": (choose_kernel, {"backends": "reference"}),
    "pattern": (limelight.Causal().allows, {"at": at}),
    "joined patterns": ((limelight.Causal() | ~limelight.Prefix(2)).allows, {"at": at}),
    "predicate": (limelight.Predicate(lambda at: at.distance < 0).allows, {"at": at}),
    "pairs": (limelight.Causal().pairs, {"queries": 3}),
    "draw": (limelight.Causal().draw, {"queries": 3}),
    "layout": (limelight.Padded(3).coordinates, {"B": 1, "Lq": 5, "Lk": 5, "device": torch.device("cpu")}),
    "packed": (limelight.Packed((2, 3)).coordinates, {"B": 1, "Lq": 5, "Lk": 5, "device": torch.device("cpu")}),
    "score rule": (limelight.SoftCap(5.0).apply, {"scores": torch.ones(1, 4, 5, 5), "at": at}),
    "comparison": (limelight.CosineSimilarity().prepare, {"query": heads, "key": heads}),
    "buckets": (limelight.T5Buckets(), {"distance": torch.arange(3)}),
}
#: Arguments that are ignored, as their documentation says; and one that speaks of the caller's own class.
IGNORED = {
    *("deterministic", "max_seqlen", "max_seqlen_q", "max_seqlen_k", "num_splits", "kernel_options", "op"),
    *("_compile", "separate_full_blocks", "compute_dq_write_order", "dq_kv_order", "causal_diagonal"),
}
NAMES_BY_ANY_WORD = ("name",)


def annotations(function):
    """The annotation of each argument as it is written."""
    found = dict(inspect.signature(function).parameters)
    if found.pop("settings", None) is not None:
        found |= {name: inspect.Parameter(name, 3, annotation=a) for name, a in SettingsFields.__annotations__.items()}
    return {name: str(p.annotation) for name, p in found.items() if name not in IGNORED}


def accepted(name, annotation, word):
    """Whether a value of `WRONG` is right for an argument after all."""
    if word == "None":
        return "None" in annotation or name == "dtype"
    if word == "a flag":
        return bool(re.search(r"\bbool\b", annotation))
    if word == "a fraction":
        return bool(re.search(r"\bfloat\b", annotation)) and name not in ("dropout", "dropout_p", "p")
    return word == "a word" and name in NAMES_BY_ANY_WORD


def cases():
    for label, (function, right) in TABLE.items():
        if isinstance(function, torch.nn.Module):
            function = function.forward
        for name, annotation in annotations(function).items():
            for word, value in WRONG.items():
                if not accepted(name, annotation, word):
                    yield pytest.param(function, right, name, value, id=f"{label}: {name} is {word}")


@pytest.mark.parametrize(("function", "right"), TABLE.values(), ids=TABLE)
def test_the_right_arguments(function, right):
    function(**right)


@pytest.mark.parametrize(("function", "right", "name", "value"), list(cases()))
def test_a_wrong_type(function, right, name, value):
    with pytest.raises((limelight.ArgumentError, TypeError)) as caught:
        function(**{**right, name: value})
    assert re.search(rf"`{name}`|'{name}'", str(caught.value)), str(caught.value)


def test_every_function_is_in_the_table():
    """Functions that are public in `compat` and its modules; masks of xFormers are tested by their constructors."""
    named = {
        getattr(module, name)
        for module in (compat, flex, xops)
        for name in module.__all__
        if inspect.isfunction(getattr(module, name))
    }
    of_functions = {flex.and_masks, flex.or_masks, flex.noop_mask}  # given and giving functions of indices
    in_table = {function for function, _ in TABLE.values()} | {compat.flash_attn_with_kvcache, compat.sdpa_kernel}
    assert named - of_functions <= in_table
