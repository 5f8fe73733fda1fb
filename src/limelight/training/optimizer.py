"""AdamW, told which numbers decay; its state in tensors and numbers, without pickle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..nn import DistanceBias
from ..tensors.shapes import wrong

KEPT = ("step", "exp_avg", "exp_avg_sq")  # what AdamW remembers of each parameter


def adamw(
    model: nn.Module, *, rate: float, decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101) of the matrices alone.

    Norms, offsets, sinks and tables (of tokens, positions, distances) keep their size: a token that is rare would be
    forgotten between two texts that have it, and a norm of 0 is no norm.

    Args:
        model: whose parameters learn.
        rate: the learning rate; the loop sets it anew at every step.
        decay: what each matrix loses in a step, as a share of it times the rate.
        betas: how slowly the two averages forget.
        epsilon: keeps a quotient finite.
    """
    matrices, others = decaying(model)
    groups = [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)


def decaying(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that decay, and the others; each in the order of the model."""
    tables = {
        id(table)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, DistanceBias))
        for table in module.parameters(recurse=False)
    }
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = {id(parameter) for parameter in learned if parameter.dim() < 2 or id(parameter) in tables}
    return [p for p in learned if id(p) not in kept], [p for p in learned if id(p) in kept]


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Everything that the optimizer remembers, as ``"what.parameter"``."""
    return {
        f"{what}.{name}": values.detach()
        for name, parameter in model.named_parameters()
        for what, values in sorted(optimizer.state.get(parameter, {}).items())
    }


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give an optimizer back what `state_of` took; it must have made no step.

    Raises:
        ArgumentError: the state of other parameters.
    """
    named = dict(model.named_parameters())
    found = {name: {what: state.get(f"{what}.{name}") for what in KEPT} for name in named}
    strange = sorted(state.keys() - {f"{what}.{name}" for name in named for what in KEPT})
    strange += [name for name, kept in found.items() if not _fits(kept, named[name])]
    if strange:
        got = f"{', '.join(strange[:3])} is not" if len(strange) == 1 else f"{', '.join(strange[:3])} are not"
        raise wrong("state", "must be that of the parameters of the model", got, "Take the checkpoint of this model.")
    for name, parameter in named.items():
        # copies, which lie in memory as PyTorch's own tensors do; a fused step keeps its count beside the numbers
        optimizer.state[parameter] = {
            what: values.clone().to(parameter.device) for what, values in found[name].items() if values is not None
        }


def _fits(kept: Mapping[str, Tensor | None], parameter: Tensor) -> bool:
    step, *averages = (kept[what] for what in KEPT)
    return step is not None and all(one is not None and one.shape == parameter.shape for one in averages)
