"""A recurrence instead of self-attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..forms.layouts import Layout
from .checks import check_texts, checked, refuse_spread
from .context import ForwardContext


@checked
class SSRU(nn.Module):
    """The simpler simple recurrent unit (Kim et al. 2019, "From Research to Production and Back", D19-5632).

    ``f_t = sigmoid(forget(x_t))``, ``c_t = f_t * c_{t-1} + (1 - f_t) * inner(x_t)``, the result ``relu(c_t)``, with
    ``c = 0`` before the first token of a document. The state has one number per feature, so a decoding step
    costs the same however long the text is. It takes the place of `limelight.nn.MultiHead` in a layer of a decoder and
    is constructed like it; the numbers of heads are not used.

    Args:
        width: features per token (``d_model``).
        query_heads, key_value_heads, head_width: those of the model; not used.
        name: of this layer; it appears in no observation, for there is no attention.
    """

    reads_other_tokens = "its state goes from each token to the next"

    def __init__(
        self, width: int, *, query_heads: int, key_value_heads: int, head_width: int, name: str | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.forget = nn.Linear(width, width)
        self.inner = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor, context: ForwardContext | Layout | None = None) -> Tensor:
        """``(B, L, width)`` to ``(B, L, width)``, in ``L`` steps one after the other.

        Raises:
            ArgumentError: states of another width, dtype or device; a layout over several processes.
        """
        check_texts(states, self.forget.in_features, self.forget.weight)
        context = ForwardContext.given(context, states)
        refuse_spread(self, context.layout)
        if not states.shape[1]:
            return states
        keep = torch.sigmoid(self.forget(states))
        new = (1 - keep) * self.inner(states)
        exists, begins = _exists(states, context), (context.positions == 0)[..., None]
        store = None if context.cache is None else context.cache.recurrent_state(self)
        carried = torch.zeros_like(states[:, 0]) if store is None or store.state is None else store.state
        found = []
        for t in range(states.shape[1]):
            before = torch.where(begins[:, t], 0, carried)
            now = keep[:, t] * before + new[:, t]
            carried = now if exists is None else torch.where(exists[:, t], now, carried)
            found.append(carried)
        if store is not None:
            store.state = carried
        return torch.relu(torch.stack(found, dim=1))


def _exists(states: Tensor, context: ForwardContext) -> Tensor | None:
    """``(B | 1, L, 1)``: which tokens are no padding, which neither reads nor changes what is carried on."""
    B, L, _ = states.shape
    if context.cache is not None:
        return None if context.cache.exists is None else context.cache.exists[..., None]
    if context.layout is None:
        return None
    return context.layout.coordinates(B, L, L, states.device).query_exists[..., None]
