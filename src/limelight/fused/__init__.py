"""The operations of a layer beside attention, each in one pass over memory, by the native library.

PyTorch computes a root-mean-square norm in eight operations, a gate in two and a rotation in three, each through
memory. Here each is one call of the library, forward and backward, with the result of those operations, rounded once.

PyTorch's operations are the definition. They compute whatever the library cannot serve (`reasons_against` says why):
under ``torch.compile`` and ``torch.export``, which fuse such operations themselves; under every other tracer and mode;
for ``torch.func``, forward mode and every derivative beyond the first; on other devices; without the library.
"""

from .capture import Capture, NotCapturable
from .captured_calls import CapturedCalls
from .dispatch import can_fuse, reasons_against
from .gate import SIGMOID_FORMS, gated, gelu_tanh
from .matrices import MAX_ROWS, matmul, matmul_is_faster, product, products
from .norm import rms_norm
from .quantisation import empty_quantized, quantise
from .rotation import rotate_halves

__all__ = [
    "MAX_ROWS",
    "SIGMOID_FORMS",
    "Capture",
    "CapturedCalls",
    "NotCapturable",
    "can_fuse",
    "empty_quantized",
    "gated",
    "gelu_tanh",
    "matmul",
    "matmul_is_faster",
    "product",
    "products",
    "quantise",
    "reasons_against",
    "rms_norm",
    "rotate_halves",
]
