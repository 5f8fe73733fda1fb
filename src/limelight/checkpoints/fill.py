"""Load the tensors of a checkpoint into a network, every one accounted for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from ..formats.errors import CheckpointError, listed
from ..formats.rules import KeyRule, KeyRules, Renamed, Unused
from ..models.saving import named_once


class Files(Protocol):
    """Stored tensors, read on demand: `SafetensorsFolder` or `GGUFFile`."""

    def keys(self) -> list[str]:
        """The names of all stored tensors."""

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""

    def read(self, key: str) -> Tensor:
        """One tensor, with the values that are stored."""


def fill(
    network: nn.Module,
    files: Files,
    rules: KeyRules,
    *,
    where: Path,
    dtype: torch.dtype,
    wide: tuple[str, ...] = (),
    report: Callable[[int], None] = lambda read: None,
) -> tuple[tuple[str, str], ...]:
    """Give every parameter of a ``network`` made on the meta device its stored values, one tensor at a time.

    Args:
        network: what to fill; its parameters are replaced, and require no gradient.
        files: the stored tensors.
        rules: from their keys to ours.
        where: the file or folder, named in error messages.
        dtype: what the values become.
        wide: ends of the names of parameters that become float32 where the others become float16.
        report: called with the number of values read so far.

    Returns:
        The stored keys that the model leaves aside knowingly, each with the reason.

    Raises:
        CheckpointError: a tensor missing, one that no rule has, or one of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in named_once(network).items()}
    stored_keys = files.keys()
    if len(stored_keys) > MAX_TENSOR_RATIO * len(wanted) + 1000:  # far more than any model leaves unused
        raise CheckpointError(
            f"{where} holds {len(stored_keys):,} tensors, and the model of its configuration has {len(wanted):,}. "
            "The weights are of another model than the configuration says."
        )
    plan, unused, unknown = _plan(files, rules)
    for key, first in differing(files, rules):
        raise CheckpointError(
            f"{where} holds {key} and {first}, which are one tensor in this model, with different values. "
            "Remove from the file what does not belong to the model."
        )
    strange = sorted(key for key, parts in plan.items() if any(part.key not in wanted for part in parts))
    absent = sorted(wanted.keys() - {part.key for parts in plan.values() for part in parts})
    _check_complete(where, rules, absent, unknown + strange)
    done = 0
    for key, parts in plan.items():
        stored = files.read(key)
        if not stored.is_floating_point():
            raise CheckpointError(
                f"{where} holds {key} as {str(stored.dtype).removeprefix('torch.')}, and weights are floating-point "
                "numbers. Quantised weights are read from GGUF only: take that, or the model before it was quantised."
            )
        for part in parts:
            try:
                values = part.read(stored)
            except (RuntimeError, IndexError) as error:
                raise CheckpointError(
                    f"{where} holds {key} with shape {tuple(stored.shape)}, of which no {part.key} of shape "
                    f"{wanted[part.key]} can be made. Configuration and weights are of different models: take both "
                    "from one place."
                ) from error
            if tuple(values.shape) != wanted[part.key]:
                raise CheckpointError(
                    f"{where} holds {key} with shape {tuple(stored.shape)}, of which {part.key} becomes "
                    f"{tuple(values.shape)}, and by its own configuration it should be {wanted[part.key]}. "
                    "Configuration and weights are of different models: take both from one place."
                )
            if part.rank:  # another parameter may be read from the same memory
                values = values.clone()
            stays = dtype is torch.float16 and part.key.endswith(wide)
            _set(network, part.key, values.to(torch.float32 if stays else dtype))
            done += values.numel()
            report(done)
    return unused


MAX_TENSOR_RATIO = 4  # stored tensors for each of a model's, at most


def differing(files: Files, rules: KeyRules) -> list[tuple[str, str]]:
    """Pairs of stored keys that are one tensor by the rules, and have different values."""
    return [(key, first) for key, first in _twins(files, rules) if not _equal(files, key, first)]


def _twins(files: Files, rules: KeyRules) -> list[tuple[str, str]]:
    """Stored keys that hold ``again`` what another one holds, each with that other one."""
    stored = set(files.keys())
    named = sorted((rule for rule in rules.rules if isinstance(rule, KeyRule)), key=lambda rule: rule.again)
    twins = []
    for ours in dict.fromkeys(rule.ours for rule in named if rule.again):
        names = [rule.published for rule in named if rule.ours == ours and not rule.spare]
        keys = dict.fromkeys(key for name in names for key in (name, name.removeprefix(rules.prefix)) if key in stored)
        first, *others = keys or [""]
        twins += [(key, first) for key in others]
    return twins


def _equal(files: Files, key: str, other: str) -> bool:
    return files.shape(key) == files.shape(other) and torch.equal(files.read(key), files.read(other))


def _plan(
    files: Files, rules: KeyRules
) -> tuple[dict[str, tuple[Renamed, ...]], tuple[tuple[str, str], ...], list[str]]:
    """For each stored key: where it goes, or why it is left aside, or that no rule has it."""
    plan: dict[str, tuple[Renamed, ...]] = {}
    unused: list[tuple[str, str]] = []
    unknown: list[str] = []
    found: dict[str, tuple[Renamed, ...]] = {}
    for key in files.keys():  # noqa: SIM118
        match rules.ours(key):
            case tuple() as parts:
                found[key] = parts
            case Unused(why=why):
                unused.append((key, why))
            case _:
                unknown.append(key)
    taken: set[str] = set()
    by_rank = sorted(((key, part) for key, parts in found.items() for part in parts), key=lambda one: one[1].rank)
    for key, part in by_rank:
        if part.key not in taken:
            taken.add(part.key)
            plan[key] = (*plan.get(key, ()), part)
    for key, parts in found.items():
        if any(part.rank == 0 and part not in plan.get(key, ()) for part in parts):
            unknown.append(key)  # an older spelling of a tensor that is there
        elif key not in plan:
            unused.append((key, "the file holds this tensor under another name too"))
    return plan, tuple(unused), unknown


def _check_complete(where: Path, rules: KeyRules, absent: list[str], unknown: list[str]) -> None:
    if not absent and not unknown:
        return
    missed = [renamed.key if (renamed := rules.published(name)) else name for name in absent]
    parts = [f"lacks {listed(missed)}"] if missed else []
    parts += [f"holds {listed(sorted(unknown))}, which this model has no place for"] if unknown else []
    raise CheckpointError(
        f"{where} {', and '.join(parts)} ({len(absent)} missing, {len(unknown)} surplus). "
        "The weights are of another model than the configuration says, or a part of the file was not copied."
    )


def _set(network: nn.Module, name: str, values: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(owner), attribute, nn.Parameter(values.contiguous(), requires_grad=False))
