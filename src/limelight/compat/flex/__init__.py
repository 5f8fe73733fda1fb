"""PyTorch's FlexAttention with its names and arguments, computed by `limelight.attention`.

``from limelight.compat.flex import flex_attention, create_block_mask`` takes the place of the same line with
``torch.nn.attention.flex_attention``. Functions of indices are recorded and become patterns and score rules, without a
compiler.
"""

from .attention import AuxOutput, AuxRequest, flex_attention
from .masks import BlockMask, and_masks, create_block_mask, create_mask, noop_mask, or_masks

__all__ = [
    "AuxOutput",
    "AuxRequest",
    "BlockMask",
    "and_masks",
    "create_block_mask",
    "create_mask",
    "flex_attention",
    "noop_mask",
    "or_masks",
]
