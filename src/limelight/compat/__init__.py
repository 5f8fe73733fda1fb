"""The signatures of other libraries' functions, computed by `limelight.attention`: code that calls them changes one
import.

What the other library means by an argument is written down here once, in a module for each library; where its meaning
cannot be kept, the call raises.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from .kernels import sdpa_kernel
from .multihead import MultiheadAttention, replace_multihead_attention
from .sdpa import scaled_dot_product_attention

if TYPE_CHECKING:
    from .flex import BlockMask, create_block_mask, flex_attention

__all__ = [
    "BlockMask",
    "MultiheadAttention",
    "create_block_mask",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "flex_attention",
    "replace_multihead_attention",
    "scaled_dot_product_attention",
    "sdpa_kernel",
]


def __getattr__(name: str) -> Any:
    """`flex` imports PyTorch's compiler, which takes a second, when first used; so `xformers` is, too."""
    if name in ("flex", "xformers"):
        return import_module(f".{name}", __name__)
    if name in ("BlockMask", "create_block_mask", "flex_attention"):
        return getattr(import_module(".flex", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
