"""AdamW with weight decay of matrices alone, and its state as named tensors, without pickle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..nn import DistanceBias
from ..tensors.shapes import wrong

STATE = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state of each parameter


def adamw(
    model: nn.Module, *, rate: float, weight_decay: float, betas: tuple[float, float], epsilon: float
) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101) with weight decay of the matrices alone.

    Norms, biases, sinks and embeddings (of tokens, positions, distances) do not decay: the embedding of a rare token
    would vanish between two texts that contain it.

    Args:
        model: the model whose parameters are optimised.
        rate: learning rate; the training loop sets it at every step.
        weight_decay: decoupled weight decay of the matrices.
        betas: decay rates of the two moment averages.
        epsilon: added to the denominator.
    """
    matrices, others = decaying(model)
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=epsilon, fused=True)


def decaying(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters with weight decay and those without, each in the order of the model."""
    tables = {
        id(table)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, DistanceBias))
        for table in module.parameters(recurse=False)
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kept = {id(parameter) for parameter in trainable if parameter.dim() < 2 or id(parameter) in tables}
    return [p for p in trainable if id(p) not in kept], [p for p in trainable if id(p) in kept]


def state_of(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Return the state of an optimizer as tensors named ``"entry.parameter"``, such as ``"exp_avg.head.weight"``."""
    return {
        f"{what}.{name}": values.detach()
        for name, parameter in model.named_parameters()
        for what, values in sorted(optimizer.state.get(parameter, {}).items())
    }


@torch.no_grad()
def restore(optimizer: torch.optim.Optimizer, model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the state that `state_of` returned into an optimizer that has made no step.

    Raises:
        ArgumentError: the state belongs to other parameters.
    """
    named = dict(model.named_parameters())
    found = {name: {what: state.get(f"{what}.{name}") for what in STATE} for name in named}
    strange = sorted(state.keys() - {f"{what}.{name}" for name in named for what in STATE})
    strange += [name for name, kept in found.items() if not _fits(kept, named[name])]
    if strange:
        got = f"{', '.join(strange[:3])} is not" if len(strange) == 1 else f"{', '.join(strange[:3])} are not"
        raise wrong("state", "must be that of the parameters of the model", got, "Take the checkpoint of this model.")
    for name, parameter in named.items():
        # copies, which lie in memory as PyTorch's own tensors do; a fused step keeps its count beside the numbers
        optimizer.state[parameter] = {
            what: values.clone().to(parameter.device) for what, values in found[name].items() if values is not None
        }


@torch.no_grad()
def empty_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Give an optimizer that has made no step the state of each parameter, to be filled with what was saved."""
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def _fits(kept: Mapping[str, Tensor | None], parameter: Tensor) -> bool:
    step, *averages = (kept[what] for what in STATE)
    return step is not None and all(one is not None and one.shape == parameter.shape for one in averages)
