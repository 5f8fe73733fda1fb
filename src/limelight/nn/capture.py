"""Decoding: the layers of a model are captured once and replayed for each token, as a CUDA graph is.

While a text is generated every layer gets one token, and calling its twenty parts from Python takes longer than many of
them. So ``forward`` of the layers is run once under a capture (`limelight.fused.Capture`), which computes nothing: the
functions of `limelight.fused`, `limelight.attention` and sums record their native calls, and any other operation ends
the capture. For each token, all recorded calls are then one call of the native library. The bits are the same.

What differs from token to token is not recorded but found for each: the angles of rotary positions are copied into
buffers that the graph reads, as the states are, and the slots of new keys in the cache are recomputed.

A layer opts in by a class attribute ``capturable``: the names of the attributes that its ``forward`` reads beside
parameters and parts, which are compared before each replay. It promises that ``forward`` has no other effect than its
result. Subclasses do not inherit the promise. The layers are called instead of replayed where one of them has not
opted in, or where a gradient, a hook, a watcher or a compiler observes them.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from .. import fused
from ..backends import native
from ..backends.contract import BackendError
from ..forms.layouts import Aligned, Layout
from ..forms.observations import current_watcher
from ..forms.patterns import Pattern
from ..forms.quantized import Quantized
from ..forms.settings import Settings
from ..fused import Capture, CapturedCalls, NotCapturable
from ..operator import compiled
from ..operator.calling import prepare
from .cache import Slots
from .context import ForwardContext
from .positions import Rotary, Rotation
from .projection import has_no_hooks

# Parts of PyTorch that compute nothing, or (dropout in training) end a capture.
_NEUTRAL = (nn.ModuleList, nn.Sequential, nn.Identity, nn.Dropout)


def decode_step(layers: nn.ModuleList, states: Tensor, context: ForwardContext) -> Tensor | None:
    """The ``states`` ``(B, L, width)`` of the next tokens of every row, after all ``layers``.

    Returns:
        ``(B, L, width)``, or ``None``, without any effect, where the layers must be called.
    """
    step = context.cache
    if (
        torch.compiler.is_compiling()
        or step is None
        or not step.continues_unpadded
        or not 0 < states.numel() <= fused.MAX_ROWS * states.shape[-1]
        or context.source is not None
        or context.cross is not None
        or context.scores  # made for each pass, of any kind
        or step.keep is not None  # heads have keys of their own numbers
        or current_watcher() is not None
        or not fused.can_fuse(states)
    ):
        return None
    graph = step.graphs.get(layers)
    if graph is None or not graph.still_valid(states):
        graph = step.graphs[layers] = Graph(layers, states)
    return None if graph.reason else cast(Tensor, graph.replay(states, context))


class Graph:
    """The captured native calls of some layers for few tokens, with all that they depend on.

    Args:
        layers: called one after the other with the states and a `ForwardContext`.
        states: ``(B, L, width)``; a graph is valid for their shape and dtype.

    Attributes:
        reason: why the layers cannot be captured; empty where they are.
    """

    def __init__(self, layers: nn.ModuleList, states: Tensor) -> None:
        self._layers, modules = layers, list(layers.modules())
        self._states = torch.empty_like(states, memory_format=torch.contiguous_format)
        self._calls: CapturedCalls[ForwardContext] = CapturedCalls()
        self._modes = (layers.training, torch.is_grad_enabled())
        self._watched = not all(map(has_no_hooks, modules))
        self.reason = "a hook is called" if self._watched else _not_declared(modules)
        if self.reason:
            return
        self._captured = _CapturedContext(self._calls, states.shape[0], states.shape[1])
        try:
            self._result = self._captured.run(layers, self._states)
        except (NotCapturable, BackendError) as ended:  # the latter of descriptions that the operator cannot record
            self.reason = str(ended)
            return
        self._attributes = [part.__dict__ for part in modules]
        self._settings = [(part.__dict__, name) for part in modules for name in getattr(type(part), "capturable", ())]
        self._held = [
            attributes.get(name) for attributes, name in self._settings
        ]  # so that no other object has their ids
        self._facts = self._look()

    def still_valid(self, states: Tensor) -> bool:
        """Whether a capture of these states would record the same again."""
        own = self._states
        if states.shape != own.shape or states.dtype is not own.dtype:
            return False
        if self.reason:
            return not self._watched and self._modes == (self._layers.training, torch.is_grad_enabled())
        return self._look() == self._facts

    def replay(self, states: Tensor, context: ForwardContext) -> Tensor:
        """The result of the layers for ``states`` ``(B, L, width)``."""
        self._states.copy_(states)
        self._captured.fill(context)
        self._calls.replay(context)
        return self._result.clone()

    def _look(self) -> list[Any]:
        """Threads; of each module its mode, parts, parameters and the attributes that it reads; ``[]`` with a hook.

        This runs for each token, so it reads the dictionaries of the modules.
        """
        wanted = torch.is_grad_enabled()
        facts: list[Any] = [torch.get_num_threads()]
        if module._global_forward_hooks or module._global_forward_pre_hooks:
            return []
        for attributes in self._attributes:
            if attributes["_forward_hooks"] or attributes["_forward_pre_hooks"] or "forward" in attributes:
                return []
            facts.append(attributes["training"])
            facts += map(id, attributes["_modules"].values())
            for parameter in attributes["_parameters"].values():
                if parameter is not None:
                    differentiated = wanted and parameter.requires_grad
                    facts += (parameter.data_ptr(), parameter.stride(), parameter.dtype, differentiated)
        facts += [id(attributes.get(name)) for attributes, name in self._settings]
        return facts


def _not_declared(modules: list[nn.Module]) -> str:
    """Which of the modules has not opted in, in words; empty where all have."""
    for part in modules:
        kind = type(part)
        if kind not in _NEUTRAL and "capturable" not in vars(kind):
            return f"{kind.__name__} does not declare `capturable`"
    return ""


class _CapturedContext(ForwardContext):
    """The context of layers under capture, in which everything that differs from step to step is a placeholder.

    Args:
        calls: where native calls are recorded.
        B, L: the shape of a step.
    """

    def __init__(self, calls: CapturedCalls[ForwardContext], B: int, L: int) -> None:
        self._capture, self._B, self._L = _LayerCapture(calls), B, L
        self._angles: dict[tuple[Rotary, torch.dtype], Rotation] = {}

    def run(self, layers: nn.ModuleList, states: Tensor) -> Tensor:
        """Capture the ``layers`` over ``states``; returns the tensor that a replay fills."""
        with self._capture:
            for layer in layers:
                states = layer(states, self)
        return states

    def fill(self, context: ForwardContext) -> None:
        """Copy the angles of a step into the buffers that the graph reads."""
        for (rotary, dtype), buffers in self._angles.items():
            rotation = context.rotation(rotary, dtype)
            buffers.own.copy_(rotation.own)
            buffers.partners.copy_(rotation.partners)

    def _rotation(self, rotary: Rotary, dtype: torch.dtype, of_source: bool) -> Rotation:
        if (rotary, dtype) not in self._angles:
            own, partners = (torch.empty(self._B, 1, self._L, rotary.width, dtype=dtype, device="cpu") for _ in "12")
            self._angles[rotary, dtype] = Rotation(own, partners, rotary.pairing)
        return self._angles[rotary, dtype]

    def extend(
        self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Layout | None]:
        slots = _CachedSlots(layer, pattern, key, value)
        self._capture.add_slots(slots)
        return *slots.cached, _PLACEHOLDER

    @property
    def _keeps_some(self) -> bool:
        return False

    @property
    def layout(self) -> Layout | None:  # type: ignore[override]
        raise NotCapturable("a layer reads the layout of a step")

    @property
    def positions(self) -> Tensor:  # type: ignore[override]
        raise NotCapturable("a layer reads the positions of a step")

    @property
    def segments(self) -> Tensor | None:  # type: ignore[override]
        raise NotCapturable("a layer reads the segments of a step")

    @property
    def cache(self) -> Any:  # type: ignore[override]
        raise NotCapturable("a layer reads the cache of a step")


_ALL = slice(None)
_PLACEHOLDER = Aligned(1, 0)  # the layout that attention is captured with; that of a replay is the cache's


class _CachedSlots:
    """The slots of one layer in the cache, looked up for every step; and placeholders of what is cached.

    Args:
        layer: of which keys and values are cached.
        pattern: which keys its queries may see.
        key: ``(B, Hkv, L, D)``, where the new keys are computed.
        value: ``(B, Hkv, L, Dv)``, where the new values are computed.
    """

    def __init__(self, layer: nn.Module, pattern: Pattern | None, key: Tensor, value: Tensor) -> None:
        self._layer, self._pattern, self._key, self._value = layer, pattern, key, value
        self.cached = torch.empty_like(key), torch.empty_like(value)  # placeholders of all that is cached
        self.now: Slots

    def write(self, calls: CapturedCalls[ForwardContext], context: ForwardContext) -> None:
        """Look up the slots of a step, and copy its new keys and values there."""
        assert context.cache is not None
        self.now = context.cache.slots(self._layer, self._pattern, self._key, self._value)
        for rows, key, value in self.now.new:
            for heads, slot in ((self._key, key), (self._value, value)):
                chosen = heads if rows == _ALL else heads[rows]
                if isinstance(slot, Quantized):
                    calls.quantise(chosen, slot)
                else:
                    calls.copy(chosen, slot)


class _LayerCapture(Capture):  # type: ignore[no-untyped-call]
    """A capture that also records attention over cached keys and values.

    Args:
        calls: where native calls are recorded.
    """

    calls: CapturedCalls[ForwardContext]

    def __init__(self, calls: CapturedCalls[ForwardContext]) -> None:
        super().__init__(calls)
        self._slots: dict[int, _CachedSlots] = {}  # by the id of the placeholder of the keys
        self._placeholders: set[int] = set()  # where they lie

    def add_slots(self, slots: _CachedSlots) -> None:
        """Record that new keys and values are written to their ``slots``."""
        self._slots[id(slots.cached[0])] = slots
        self._placeholders |= {placeholder.untyped_storage().data_ptr() for placeholder in slots.cached}
        self.calls.recompute(slots.write)

    def check(self, *tensors: Tensor) -> None:
        super().check(*tensors)
        if not self._placeholders.isdisjoint(tensor.untyped_storage().data_ptr() for tensor in tensors):
            raise NotCapturable("cached keys or values are used in another operation than attention")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.limelight.attention.default:
            return self._attention(*args)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _attention(self, tensors: list[Tensor], numbers: list[int], reals: list[float], recipe: str) -> Any:
        """Record a call of `limelight.attention`; returns its output and a placeholder of its logsumexp."""
        query, key, value = tensors[:3]
        slots = self._slots.get(id(key))
        if slots is None or value is not slots.cached[1]:
            raise NotCapturable("attention to other keys and values than those that the cache returned")
        call = compiled.read_call(tensors, numbers, reals, recipe)
        if call.layout != _PLACEHOLDER:
            raise NotCapturable("attention with another layout than the one that the cache returned")
        reasons = native.reasons_against(call) + (["dropout"] if call.dropout else [])
        if reasons:
            raise NotCapturable(f"attention is not computed by the native library: {reasons[0]}")
        B, Hq, L, _ = query.shape
        output = query.new_empty(B, L, Hq, value.shape[3]).transpose(1, 2)

        def attend(calls: CapturedCalls[ForwardContext], context: ForwardContext) -> None:
            now = slots.now
            settings = Settings(call.sink, call.scores, call.compare, now.layout, call.pattern, call.scale)
            now_call = prepare(query, now.key, now.value, settings)
            calls.attention(now_call, output)

        self.calls.recompute(attend)
        return output, query.new_empty(B, Hq, L, dtype=torch.float32)
