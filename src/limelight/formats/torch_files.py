"""A pickled file of tensors, for packaged models alone.

A pickle can run anything when it is read, so no file of a user's or of a hub is. That of a packaged model is compared
with its sha256 first, and then read by PyTorch's reader of tensors (``weights_only``), which makes tensors and nothing
else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .errors import damaged


class TorchFile:
    """The tensors of a ``pytorch_model.bin`` whose sha256 is known.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever PyTorch makes of it
            raise damaged(path, f"PyTorch says {str(error)!r}") from error
        if not isinstance(found, dict) or not all(isinstance(values, Tensor) for values in found.values()):
            raise damaged(path, "it holds something else than named tensors")
        self._tensors: dict[str, Tensor] = found

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor."""
        return tuple(self._tensors[key].shape)

    def read(self, key: str) -> Tensor:
        """One tensor, as it was stored."""
        return self._tensors[key]
