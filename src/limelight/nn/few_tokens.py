"""The layers of a text that is being written, by one call of the native library for each token.

While a text is written every layer meets one token, and calling its twenty parts from Python takes longer than many of
them. So what the layers do with a token is *noted* once (`limelight.fused.Capture`), and run for every token that
follows: what CUDA graphs are on another machine. The bits are the same.

A layer that can be noted has a method ``note``, which has no effect beside the notes. Wherever somebody looks on (a
gradient, a hook, a watcher, a compiler), or a part is of another kind, the layers are called instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from .. import fused
from ..forms.observations import current_watcher
from ..fused import Capture
from .places import Places
from .projection import is_unwatched


class Notable(Protocol):
    """A layer that can be noted."""

    def note(self, steps: Capture[Places], states: Tensor) -> Tensor | None:
        """Room for what ``forward`` makes of ``states``, filled when the ``steps`` are run.

        ``None`` where the layer must be called.
        """


def noted(steps: Capture[Places], layer: nn.Module, states: Tensor) -> Tensor | None:
    """``layer(states)``, noted in ``steps``; ``None`` where it must be called."""
    if "note" not in type(layer).__dict__ or not is_unwatched(layer):  # a subclass has a mind of its own
        return None
    return cast(Notable, layer).note(steps, states)


def in_turn(steps: Capture[Places], layers: Iterable[nn.Module], states: Tensor) -> Tensor | None:
    """Each of the ``layers`` after the one before, noted; ``None`` where one of them must be called."""
    found: Tensor | None = states
    for layer in layers:
        found = None if found is None else noted(steps, layer, found)
    return found


def written(layers: nn.ModuleList, states: Tensor, places: Places) -> Tensor | None:
    """The ``states`` ``(B, L, width)`` after all ``layers``, for the next tokens of every row.

    ``None`` where the layers must be called, and nothing has happened.
    """
    step = places.cache
    if (
        torch.compiler.is_compiling()
        or step is None
        or not step.goes_on
        or not 0 < states.numel() <= fused.MOST_ROWS * states.shape[-1]
        or places.source is not None
        or places.scores  # made anew for each pass, of any kind
        or current_watcher() is not None
        or not fused.can_fuse(states)
    ):
        return None
    program = step.memory.get(layers)
    if program is None or not program.holds(states):
        program = step.memory[layers] = Program.of(layers, states)
    return None if program is None else cast(Tensor, program.run(states, places))


class Program:
    """What some layers do with few tokens, and all that it rests on.

    Args:
        layers: what was noted.
        steps: the notes.
        given: where they read their states.
        result: where they write them.
    """

    def __init__(self, layers: nn.ModuleList, steps: Capture[Places], given: Tensor, result: Tensor) -> None:
        self._steps, self._given, self._result = steps, given, result
        self._modules = list(layers.modules())
        self._facts = self._look()

    @classmethod
    def of(cls, layers: nn.ModuleList, states: Tensor) -> Program | None:
        """Note the ``layers`` over states like these; ``None`` where one of them must be called."""
        steps: Capture[Places] = Capture()
        given = torch.empty_like(states, memory_format=torch.contiguous_format)
        result = in_turn(steps, layers, given)
        return None if result is None else cls(layers, steps, given, result)

    def holds(self, states: Tensor) -> bool:
        """Whether it would be noted again as it is, for these states."""
        given = self._given
        return states.shape == given.shape and states.dtype is given.dtype and self._look() == self._facts

    def run(self, states: Tensor, places: Places) -> Tensor:
        """The layers' result for ``states``."""
        self._given.copy_(states)
        self._steps.replay(places)
        return self._result.clone()

    def _look(self) -> list[Any]:
        """Threads; of every module whether somebody looks on, its mode, its parts; its parameters."""
        modules, wanted = self._modules, torch.is_grad_enabled()
        facts: list[Any] = [torch.get_num_threads(), all(map(is_unwatched, modules))]
        facts += [module.training for module in modules]
        facts += [id(part) for module in modules for part in module._modules.values()]
        for module in modules:
            for parameter in module._parameters.values():
                if parameter is not None:
                    asked = wanted and parameter.requires_grad
                    facts += (parameter.data_ptr(), parameter.stride(), parameter.dtype, asked)
        return facts


def does_nothing(dropout: nn.Module) -> bool:
    """Whether a dropout hands on what it is given."""
    return (type(dropout) is nn.Identity or not dropout.training) and is_unwatched(dropout)
