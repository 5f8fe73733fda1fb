"""Which attention layers of a model of transformers Limelight computes."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from ..tensors.shapes import wrong

NAME = "limelight"


@dataclass(frozen=True)
class Report:
    """The attention layers of a model that Limelight computes, and the others; printed, a report in words.

    Attributes:
        served: names of the layers that Limelight computes.
        own: names of the layers it does not compute, each with the reason.
    """

    served: tuple[str, ...]
    own: dict[str, str]

    def __str__(self) -> str:
        lines = [f"Limelight computes {len(self.served)} of {len(self.served) + len(self.own)} attention layers."]
        for why, count in Counter(self.own.values()).items():
            first = next(name for name, reason in self.own.items() if reason == why)
            lines.append(f"  not {first}{f' and {count - 1} more' if count > 1 else ''}: {why}")
        return "\n".join(lines)


def report(model: nn.Module) -> Report:
    """Which attention layers of a model go through transformers' registry to Limelight, and why others do not.

    transformers accepts ``attn_implementation="limelight"`` for models that have attention of their own (DeBERTa,
    Falcon, BLOOM, MPT, GPT-J, XLNet, Longformer, among others) and goes on as before, with a line in its log at most;
    this says so.
    """
    if not isinstance(model, nn.Module):
        raise wrong("model", "must be a model, a torch.nn.Module", f"it is {model!r}", "Build or load it first.")
    served, own = [], {}
    attentions = {
        name: module for name, module in model.named_modules() if "attention" in type(module).__name__.lower()
    }
    registered = {name for name, module in model.named_modules() if _uses_registry(type(module))}
    for name, module in model.named_modules():
        if name in registered:
            chosen = getattr(getattr(module, "config", None), "_attn_implementation", None)
            if chosen == NAME:
                served.append(name)
            else:
                own[name] = (
                    f"its config asks for {chosen!r}; load the model with attn_implementation={NAME!r}, or call "
                    f"set_attn_implementation({NAME!r})"
                )
        elif name in attentions and not any(
            inner != name and inner.startswith(f"{name}." if name else "") for inner in {*attentions, *registered}
        ):
            own[name] = f"{type(module).__name__} has attention of its own, outside transformers' registry"
    return Report(tuple(served), own)


def _uses_registry(kind: type) -> bool:
    """Whether a method of a layer's class reads the table of attention functions."""
    if issubclass(kind, PreTrainedModel):
        return False
    methods = [method for cls in kind.__mro__ if cls is not nn.Module for method in vars(cls).values()]
    return any(
        "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(method).__code__.co_names
        for method in methods
        if inspect.isfunction(method)
    )
