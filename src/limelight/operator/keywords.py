"""What keyword arguments of other libraries are called here: the hint of the error that they end in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from ..forms.settings import SettingsFields

#: From the argument to the library, and the way to write it for `limelight.attention`.
ELSEWHERE = {
    "is_causal": ("PyTorch", "pattern=Causal(), and layout=Aligned(query_start=0) where Lq and Lk differ"),
    "attn_mask": ("PyTorch", "pattern=Explicit(mask) for a bool mask, scores=(Bias(mask),) for a float one"),
    "dropout_p": ("PyTorch", "dropout=p"),
    "enable_gqa": ("PyTorch", "nothing: fewer key-value heads than query heads are shared by groups of them"),
    "key_padding_mask": ("PyTorch", "layout=KeyMask(~mask), true where a key exists"),
    "need_weights": ("PyTorch", "observe=Observe(rows=(0, 1, ...)) for the weights of some queries"),
    "score_mod": ("PyTorch", "scores=(...), or call limelight.compat.flex_attention"),
    "block_mask": ("PyTorch", "pattern=Blocks(table, size), or call limelight.compat.flex_attention"),
    "return_lse": ("PyTorch", "observe=Observe(logsumexp=True)"),
    "causal": ("flash-attention", "pattern=Causal()"),
    "window_size": ("flash-attention", "pattern=Window(left, right)"),
    "softmax_scale": ("flash-attention", "scale=factor"),
    "softcap": ("flash-attention", "scores=(SoftCap(limit),)"),
    "alibi_slopes": ("flash-attention", "scores=(ALiBi(slopes),)"),
    "return_attn_probs": ("flash-attention", "observe=Observe(logsumexp=True)"),
    "block_table": ("flash-attention", "layout=Paged(query_lengths, key_lengths, table)"),
    "cu_seqlens_q": ("flash-attention", "layout=Packed(query_lengths, key_lengths), lengths instead of their sums"),
    "cu_seqlens_k": ("flash-attention", "layout=Packed(query_lengths, key_lengths), lengths instead of their sums"),
    "deterministic": ("flash-attention", "nothing: results are always deterministic"),
    "attn_bias": ("xFormers", "scores=(Bias(tensor),), or call limelight.compat.xformers"),
    "p": ("xFormers", "dropout=p"),
    "attention_mask": ("Transformers", "layout=KeyMask(mask.bool()) for (B, Lk), pattern=Explicit(mask) for pairs"),
    "sliding_window": ("Transformers", "pattern=Causal() & Window(n - 1, 0)"),
    "mask": ("JAX", "pattern=Explicit(mask)"),
    "bias": ("JAX", "scores=(Bias(bias),)"),
}


def unexpected(function: str, names: Iterable[str], *own: str) -> TypeError:
    """The error of keyword arguments that a function does not have; the first of them is named.

    Args:
        function: its name.
        names: the arguments.
        own: arguments that it has beside the settings of a call.
    """
    name = next(iter(names))
    message = f"{function}() got an unexpected keyword argument {name!r}."
    if name in ELSEWHERE:
        library, here = ELSEWHERE[name]
        return TypeError(f"{message} `{name}` is {library}'s: write {here}.")
    known = (*SettingsFields.__annotations__, *own)
    near = difflib.get_close_matches(name, known, 1)
    return TypeError(f"{message} Did you mean `{near[0]}`?" if near else f"{message} It has {', '.join(known)}.")
