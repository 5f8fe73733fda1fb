"""flash-attention's functions (2.8) with its names, arguments and shapes, computed by `limelight.attention`.

``from limelight.compat.flash_attn import flash_attn_func`` is the one line to change.
"""

from .batches import flash_attn_func, flash_attn_kvpacked_func, flash_attn_qkvpacked_func
from .cache import flash_attn_with_kvcache
from .documents import flash_attn_varlen_func, flash_attn_varlen_kvpacked_func, flash_attn_varlen_qkvpacked_func

__all__ = [
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
