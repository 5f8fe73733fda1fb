"""What a transformers model does, found by running it once on a few tokens: `discover`.

Configurations name their sizes, layers and norms in a hundred ways. One observed run shows them all alike: which
attention layers are called, in which order, with how many heads, from which block; which of them are causal; which
matrix reads the mixed values; which norm makes the last states.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...forms.observations import Observations, Observe, Seen, watching

SOURCE, TARGET = 5, 3  # tokens of the run: of one text or of the source, and of what a decoder writes to the source


@dataclass(eq=False)
class Call:
    """One attention call of the run.

    Attributes:
        module: name of the layer, within the model.
        heads: query heads.
        queries: number of queries.
        keys: number of keys.
        causal: whether the first query gives weight to the first key alone.
        block: how many blocks of its stack began before, itself not counted; -1 outside any.
        projection: the layer that reads the mixed values of all heads.
    """

    module: str
    heads: int
    queries: int
    keys: int
    causal: bool = False
    block: int = -1
    projection: nn.Module | None = None


@dataclass(eq=False)
class Discovery:
    """The calls of one run, in order, and the outputs of norms outside the blocks.

    Attributes:
        calls: in order.
        norms: the modules that may be the last norm, each with its last output.
        mixed: the mixed values of the last call, ``(B, L, H * Dv)``, until a layer has read them.
    """

    calls: list[Call] = field(default_factory=list)
    norms: list[tuple[nn.Module, Tensor]] = field(default_factory=list)
    mixed: Tensor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each call, all different: that of its layer, with a number where a layer is called again."""
        count, seen = Counter(call.module for call in self.calls), Counter[str]()
        found = []
        for call in self.calls:
            found.append(call.module if count[call.module] == 1 else f"{call.module}[{seen[call.module]}]")
            seen[call.module] += 1
        return tuple(found)

    def norm_before(self, states: Tensor) -> nn.Module | None:
        """The norm outside the blocks whose output are these states; ``None`` where there is none."""
        for norm, output in reversed(self.norms):
            if output.numel() == states.numel() and torch.equal(output.reshape(states.shape), states):
                return norm
        return None


class _Calls(Seen):
    """Writes down each call; the first query's weights show whether it is causal."""

    def __init__(self, found: Discovery, block: Callable[[], int]) -> None:
        super().__init__(Observe(rows=(0,)))
        self.found, self.block = found, block

    def request(self, name: str | None, query: Tensor, key: Tensor) -> Observe:
        self.found.calls.append(Call(name or "", query.shape[1], query.shape[2], key.shape[2], block=self.block()))
        return self.observe

    def add(self, name: str | None, observations: Observations) -> None:
        assert observations.rows is not None
        self.found.calls[-1].causal = not bool(observations.rows[..., 1:].any())

    def replace(self, name: str | None, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        self.found.mixed = output.transpose(1, 2).flatten(2)
        return output


def discover(model: nn.Module, run: Callable[[], Any]) -> tuple[Discovery, Any]:
    """Run a model once under observation; return what its attention layers did, and the result of ``run``.

    Args:
        model: the module that ``run`` calls.
        run: calls the model on a few tokens.
    """
    found = Discovery()
    begun: list[int] = [-1]
    with _hooks(model, found, begun), watching(_Calls(found, lambda: begun[0])):
        result = run()
    return found, result


@contextmanager
def _hooks(model: nn.Module, found: Discovery, begun: list[int]) -> Iterator[None]:
    """Count the blocks that begin, find the layer behind each call, and keep what norms outside the blocks give."""
    handles = []
    stacks: dict[str, int] = {}

    def block(stack: str) -> Callable[..., None]:
        def begins(*_: Any) -> None:
            stacks[stack] = begun[0] = stacks.get(stack, -1) + 1

        return begins

    def reads(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        mixed, x = found.mixed, arguments[0] if arguments else None
        if mixed is None or not isinstance(x, Tensor) or x.numel() != mixed.numel() or x.shape[-1] != mixed.shape[-1]:
            return
        if torch.equal(x.reshape(mixed.shape), mixed):
            found.calls[-1].projection, found.mixed = module, None

    def gives(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.norms.append((module, output))

    for name, module in model.named_modules():
        outside = not any(part.isdigit() for part in name.split("."))
        if isinstance(module, nn.ModuleList) and outside:
            handles += [inner.register_forward_pre_hook(block(name)) for inner in module]
        if "norm" in type(module).__name__.lower() and outside:
            handles.append(module.register_forward_hook(gives))
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            handles.append(module.register_forward_pre_hook(reads))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Renamed(Seen):
    """Passes each call of a run on to a watcher under the name that `Discovery.names` gives to it.

    Args:
        watcher: what observes.
        modules: the layers in the order of their calls.
        names: what each call is named.
    """

    def __init__(self, watcher: Seen, modules: tuple[str, ...], names: tuple[str, ...]) -> None:
        super().__init__(watcher.observe)
        self.watcher, self.modules, self.names = watcher, modules, names
        self.at = -1

    def request(self, name: str | None, query: Tensor, key: Tensor) -> Observe:
        self.at += 1
        expected = self.modules[self.at] if self.at < len(self.modules) else None
        short, long = sorted((name or "", expected or ""), key=len)
        if expected is None or not long.endswith(short):
            raise RuntimeError(
                f"call {self.at} of this run comes from {name!r}, and in the run on a few tokens from {expected!r}: "
                "a model that calls other layers for other texts cannot be observed by their order."
            )
        return self.watcher.request(self.names[self.at], query, key)

    def add(self, name: str | None, observations: Observations) -> None:
        self.watcher.add(self.names[self.at], observations)

    def replace(self, name: str | None, query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> Tensor:
        return self.watcher.replace(self.names[self.at], query, key, value, output)
