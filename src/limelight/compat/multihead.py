"""`torch.nn.MultiheadAttention` with its parameters and arguments, computed by `limelight.attention`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..forms.layouts import Aligned, KeyMask, Layout
from ..forms.observations import Observe
from ..forms.patterns import Causal, Explicit, Keys, Pattern
from ..forms.scores import Bias
from ..fused import product
from ..tensors.shapes import check_tensor, describe, flag, wrong
from .kernels import attention


class MultiheadAttention(nn.MultiheadAttention):
    """`torch.nn.MultiheadAttention`: the same constructor, parameters, state dict, arguments and results.

    With ``need_weights=False`` it takes linear memory, for every mask; with the default, ``need_weights=True``, it also
    returns the weights, ``Lq x Lk`` numbers for each head. There are five differences. A query that sees no key gives
    zeros, where PyTorch gives NaN. ``is_causal=True`` needs no ``attn_mask``, and then no mask is held; the keys of
    ``add_bias_kv`` and ``add_zero_attn`` are seen then as ever, which PyTorch hides if no weights are wanted. Weights
    are those before dropout. Nested tensors are refused; PyTorch's inference path, which takes them, is not used.

    Example:
        >>> import torch
        >>> from limelight.compat import MultiheadAttention
        >>> theirs = torch.nn.MultiheadAttention(64, 8, batch_first=True)
        >>> ours = MultiheadAttention(64, 8, batch_first=True)
        >>> ours.load_state_dict(theirs.state_dict())
        <All keys matched successfully>
        >>> x = torch.randn(2, 10, 64)
        >>> output, weights = ours(x, x, x, need_weights=False)
        >>> output.shape
        torch.Size([2, 10, 64])
    """

    @classmethod
    def from_torch(cls, layer: nn.MultiheadAttention) -> MultiheadAttention:
        """The layer that computes what ``layer`` computes, with the same parameters: they are shared, not copied."""
        if not isinstance(layer, nn.MultiheadAttention):
            got = f"it is a {type(layer).__name__}"
            raise wrong("layer", "must be a torch.nn.MultiheadAttention", got, "Pass the layer, not the model.")
        new = cls(
            layer.embed_dim, layer.num_heads, layer.dropout, layer.in_proj_bias is not None, layer.bias_k is not None,
            layer.add_zero_attn, layer.kdim, layer.vdim, layer.batch_first, device="meta",
        )  # fmt: skip
        for name, parameter in layer.named_parameters(recurse=False):
            setattr(new, name, parameter)
        new.out_proj = layer.out_proj
        return new.train(layer.training)

    def _reset_parameters(self) -> None:
        self._qkv_same_embed_dim = self.in_proj_weight is not None
        super()._reset_parameters()
        # Where this is true, PyTorch's encoder layers compute attention in evaluation without calling this layer.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of ``query`` to ``key`` and ``value``, and the weights if they are wanted.

        Args:
            query: ``(Lq, B, embed_dim)``, with ``batch_first=True`` ``(B, Lq, embed_dim)``, or ``(Lq, embed_dim)``.
            key: the same with ``Lk`` tokens of ``kdim`` features.
            value: the same with ``Lk`` tokens of ``vdim`` features.
            key_padding_mask: ``(B, Lk)``, or ``(Lk,)`` without a batch; bool, true where a key is *not* seen, or float,
                which is added to the scores.
            need_weights: whether to return the weights.
            attn_mask: ``(Lq, Lk)`` or ``(B * num_heads, Lq, Lk)``; bool, true where a key is *not* seen, or float,
                which is added to the scores.
            average_attn_weights: return the mean of the weights over the heads, not those of each head.
            is_causal: query ``i`` sees the keys up to ``i``. With an ``attn_mask`` it is the promise that the mask says
                so, and the mask is then read only beside a ``key_padding_mask`` or with ``need_weights=True``.

        Returns:
            The output in the shape of ``query``; and the weights, ``(B, Lq, Lk)``, ``(B, num_heads, Lq, Lk)`` or the
            same without ``B``, or ``None``. ``add_bias_kv`` and ``add_zero_attn`` add a key each.

        Raises:
            ArgumentError: the shapes do not fit, or a tensor is nested.
        """
        batched = self._check(query, key, value)
        need_weights, is_causal = flag("need_weights", need_weights), flag("is_causal", is_causal)
        average_attn_weights = flag("average_attn_weights", average_attn_weights)
        first = self.batch_first and batched
        q, k, v = (self._split(x, first) for x in self._project(query, key, value))
        own = k.shape[2]
        k, v = self._with_added(k, self.bias_k), self._with_added(v, self.bias_v)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None
        elif attn_mask is not None:
            is_causal = False
        settings = _meaning(q, k, own, key_padding_mask, attn_mask, is_causal)
        settings["dropout"] = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            rows = torch.arange(q.shape[2], device="cpu")
            output, seen = attention(q, k, v, observe=Observe(rows=rows), **settings)
            assert seen.rows is not None
            weights = (seen.rows.mean(1) if average_attn_weights else seen.rows).to(output.dtype)
            weights = weights if batched else weights[0]
        else:
            output = attention(q, k, v, **settings)
        output = output.permute(0, 2, 1, 3) if first or not batched else output.permute(2, 0, 1, 3)
        output = product((output if batched else output[0]).flatten(-2), self.out_proj.weight, self.out_proj.bias)
        return output, weights

    def _check(self, query: Tensor, key: Tensor, value: Tensor) -> bool:
        """Whether there is a batch."""
        widths = (self.embed_dim, self.kdim, self.vdim)
        for name, tensor, width in zip(("query", "key", "value"), (query, key, value), widths, strict=True):
            if check_tensor(name, tensor).dim() not in (2, 3) or tensor.shape[-1] != width:
                shape = f"(B, L, {width})" if self.batch_first else f"(L, B, {width})"
                raise wrong(name, f"must be {shape} or (L, {width})", f"it is {describe(tensor)}", "See batch_first.")
        if not query.dim() == key.dim() == value.dim() or key.shape[:-1] != value.shape[:-1]:
            got = f"they are {describe(key)} and {describe(value)}, and `query` is {describe(query)}"
            raise wrong("key", "and `value` must have the same tokens, in a batch as `query`", got, "See batch_first.")
        rows = 0 if self.batch_first else 1
        if query.dim() == 3 and query.shape[rows] != key.shape[rows]:
            got = f"it has {key.shape[rows]} rows, and `query` {query.shape[rows]}"
            raise wrong("key", "must have as many rows as `query`", got, "See batch_first.")
        return query.dim() == 3

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values in the shapes of the three."""
        if self.in_proj_weight is not None:
            if query is key and key is value:
                return product(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
            matrices = self.in_proj_weight.chunk(3)
        else:
            matrices = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases: Any = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(product(x, m, b) for x, m, b in zip((query, key, value), matrices, biases, strict=True))

    def _split(self, states: Tensor, batch_first: bool) -> Tensor:
        """The heads ``(B, H, L, D)`` of ``(L, B, H * D)``, ``(L, H * D)`` or, batch first, ``(B, L, H * D)``."""
        heads = states.view(*states.shape[:-1], self.num_heads, self.head_dim)
        if heads.dim() == 3:
            return heads.transpose(0, 1)[None]
        return heads.permute(0, 2, 1, 3) if batch_first else heads.permute(1, 2, 0, 3)

    def _with_added(self, heads: Tensor, bias: Tensor | None) -> Tensor:
        """Keys or values ``(B, H, Lk, D)`` with those of ``add_bias_kv`` and ``add_zero_attn`` behind them."""
        if bias is not None:
            own = bias.view(1, self.num_heads, 1, self.head_dim).expand(len(heads), -1, -1, -1)
            heads = torch.cat((heads, own), 2)
        return functional.pad(heads, (0, 0, 0, 1)) if self.add_zero_attn else heads


def replace_multihead_attention(model: nn.Module) -> int:
    """Put `MultiheadAttention` in the place of every `torch.nn.MultiheadAttention` in a model, sharing its parameters.

    Subclasses are left alone. A `torch.nn.TransformerEncoder` makes no nested tensors any more.

    Returns:
        How many layers were replaced.
    """
    if not isinstance(model, nn.Module):
        raise wrong("model", "must be a torch.nn.Module", f"it is {describe(model)}", "Pass the model.")
    found = [(name, layer) for name, layer in model.named_modules() if type(layer) is nn.MultiheadAttention]
    for name, layer in found:
        if not name:
            rule, way_out = "must be a model that holds the layers", "Use MultiheadAttention.from_torch(layer)."
            raise wrong("model", rule, "it is a single torch.nn.MultiheadAttention", way_out)
        model.set_submodule(name, MultiheadAttention.from_torch(layer))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
    return len(found)


def _meaning(
    q: Tensor, k: Tensor, own: int, padding: Tensor | None, mask: Tensor | None, causal: bool
) -> dict[str, Any]:
    """The masks as layout, pattern and score rules of a call of which ``own`` keys are not added ones."""
    (B, H, Lq, _), Lk = q.shape, k.shape[2]
    layout: Layout | None = Aligned(query_start=0) if causal else None
    pattern: Pattern | None = None
    scores = []
    if causal:
        pattern = Causal() if own == Lk else Causal() | ~Keys(own)
    if mask is not None:
        if check_tensor("attn_mask", mask).dim() == 3 and mask.shape == (B * H, Lq, own):
            mask = mask.reshape(B, H, Lq, own)
        elif mask.shape != (Lq, own):
            rule = f"must be ({Lq}, {own}) or ({B * H}, {Lq}, {own})"
            raise wrong("attn_mask", rule, f"it is {describe(mask)}", "They are (Lq, Lk) and (B * num_heads, Lq, Lk).")
        mask = functional.pad(mask, (0, Lk - own))
        if mask.dtype == torch.bool:
            pattern = Explicit(~mask)
        else:
            scores.append(Bias(mask))
    if padding is not None:
        if check_tensor("key_padding_mask", padding).shape != (B, own):
            got = f"it is {describe(padding)}"
            raise wrong("key_padding_mask", f"must be ({B}, {own}), for each key", got, "Added keys are always seen.")
        padding = functional.pad(padding, (0, Lk - own))
        if padding.dtype != torch.bool:
            scores.append(Bias(padding[:, None, None]))
        elif not causal or Lq == Lk:
            layout = KeyMask(~padding)
        else:
            exists = Explicit(~padding[:, None, None])
            pattern = exists if pattern is None else pattern & exists
    return {"layout": layout, "pattern": pattern, "scores": tuple(scores)}
