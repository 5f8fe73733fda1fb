"""The signatures of other libraries' functions, computed by `limelight.attention`: code that calls them changes one
import.

What the other library means by an argument is written down here once, in a module for each library; where its meaning
cannot be kept, the call raises.
"""

from .flash_attn import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
    flash_attn_with_kvcache,
)
from .multihead import MultiheadAttention, replace_multihead_attention
from .sdpa import scaled_dot_product_attention

__all__ = [
    "MultiheadAttention",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
    "replace_multihead_attention",
    "scaled_dot_product_attention",
]
