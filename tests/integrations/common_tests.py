"""transformers' own tests that attention agrees with eager, with Limelight in the place of ``sdpa``.

``PYTHONPATH=tests python tests/integrations/common_tests.py [family ...]`` fetches the sources of the pinned version of
transformers (and `parameterized`, which its tests import) by pip, unpacks its tests into a temporary folder, and runs
those of `TESTS` for each of `FAMILIES`, whose models are built small here: the testers of single families are not in
that distribution. It prints a line for each family, and ends with 1 when a test fails or no call reached Limelight. It
needs a network and takes minutes, so pytest does not run it.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from support.families import BART, DECODERS, ENCODER_DECODERS, ENCODERS, IMAGES, Family

from limelight.integrations.transformers import account, enable

VERSION = "5.23.0"
SHA256 = "19d647a4d5d903a7c644ca5cde2d86efc3dde7d8c687ae7988806ff2205efa71"
TESTS = ("test_eager_matches_sdpa_inference", "test_retain_grad_hidden_states_attentions")
# What the tests name, and what stands there instead: the second forces eager where weights are wanted.
INSTEAD = {
    'attn_implementation="sdpa"': 'attn_implementation="limelight"',
    '_from_config(config, attn_implementation="eager")': '_from_config(config, attn_implementation="limelight")',
}
WHISPER = BART | {
    "num_mel_bins": 8, "max_source_positions": 12, "max_target_positions": 40, "suppress_tokens": None,
    "begin_suppress_tokens": None, "decoder_attention_heads": 4,
}  # fmt: skip
# Each with the ends of its models' names.
FAMILIES: dict[str, tuple[Family, tuple[str, ...]]] = {
    "llama": (DECODERS["llama"], ("Model", "ForCausalLM", "ForSequenceClassification", "ForTokenClassification")),
    "mistral": (DECODERS["mistral, window 4"], ("Model", "ForCausalLM", "ForSequenceClassification")),
    "mixtral": (DECODERS["mixtral"], ("Model", "ForCausalLM", "ForSequenceClassification")),
    "qwen3": (DECODERS["qwen3"], ("Model", "ForCausalLM", "ForSequenceClassification")),
    "gemma2": (DECODERS["gemma2"], ("Model", "ForCausalLM", "ForSequenceClassification")),
    "gpt2": (DECODERS["gpt2"], ("Model", "LMHeadModel", "ForSequenceClassification", "DoubleHeadsModel")),
    "bert": (ENCODERS["bert"], ("Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification")),
    "roberta": (ENCODERS["roberta"], ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")),
    "t5": (ENCODER_DECODERS["t5"], ("Model", "ForConditionalGeneration", "ForSequenceClassification")),
    "bart": (ENCODER_DECODERS["bart"], ("Model", "ForConditionalGeneration", "ForSequenceClassification")),
    "whisper": (Family("WhisperConfig", "", WHISPER), ("Model", "ForConditionalGeneration")),
    "vit": (
        Family("ViTConfig", "", IMAGES["vit"].settings | {"encoder_stride": 4}),
        ("Model", "ForImageClassification", "ForMaskedImageModeling"),
    ),
}


@dataclass
class Tester:
    """What transformers' tests ask about a family."""

    family: Family
    batch_size: int = 7  # as many as the tests compare: they would fill up with any tokens
    seq_length: int = 9
    image_size: int = 16
    patch_size: int = 4
    num_masks: int = 5
    mask_length: int = 16  # image patches

    def __post_init__(self) -> None:
        if self.family.config == "ViTConfig":
            self.seq_length = self.mask_length + 1

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """A configuration of its own, and the arguments of a model."""
        config = getattr(transformers, self.family.config)(**self.family.settings)
        if config.model_type == "vit":
            return config, {"pixel_values": torch.rand(self.batch_size, 3, self.image_size, self.image_size)}
        # A text classifier of an encoder-decoder reads the last token that ends a text.
        tokens = torch.randint(5, 60, (self.batch_size, self.seq_length))
        tokens[:, -1] = 2
        inputs = {"input_ids": tokens}
        if config.model_type == "whisper":
            inputs = {"input_features": torch.rand(self.batch_size, config.num_mel_bins, 24)}
        if config.is_encoder_decoder:
            return config, inputs | {"decoder_input_ids": tokens}
        return config, inputs | {"attention_mask": torch.ones_like(tokens)}


def fetched(folder: Path) -> Path:
    """The unpacked tests of transformers."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = f"transformers=={VERSION}"
    subprocess.run([*pip, "install", "--target", str(folder / "site"), "parameterized==0.9.0"], check=True)
    subprocess.run([*pip, "download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), source], check=True)
    (archive,) = folder.glob("transformers-*.tar.gz")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"{archive.name} has the sha256 {found}, not {SHA256}")
    with tarfile.open(archive) as tar:
        tests = [member for member in tar.getmembers() if f"transformers-{VERSION}/tests/" in member.name]
        tar.extractall(folder, members=tests, filter="data")
    sys.path.append(str(folder / "site"))
    return folder / f"transformers-{VERSION}" / "tests"


class InOurName(importlib.machinery.SourceFileLoader):
    """Loads a file of tests with our name where theirs stands."""

    def get_data(self, path: str) -> bytes:
        text = super().get_data(path).decode()
        for theirs, ours in INSTEAD.items():
            assert theirs in text, f"{path} no longer holds {theirs}"
            text = text.replace(theirs, ours)
        return text.encode()

    def path_stats(self, path: str) -> Any:
        raise OSError  # no compiled file is kept, nor read


def loaded(tests: Path) -> Any:
    """`tests/test_modeling_common.py`, which imports two mixins that are not in the distribution and not wanted."""
    for name, mixin in (
        ("theirs", None),
        ("theirs.exporters", None),
        ("theirs.exporters.test_export", "ExportTesterMixin"),
        ("theirs.generation", None),
        ("theirs.generation.test_utils", "GenerationTesterMixin"),
    ):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = []
        if mixin is not None:
            setattr(module, mixin, type(mixin, (), {}))
    name = "theirs.test_modeling_common"
    loader = InOurName(name, str(tests / "test_modeling_common.py"))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def suite(common: Any, name: str) -> unittest.TestSuite:
    """The tests of one family, of each model alone: a model that has to be skipped takes none with it."""
    family, ends = FAMILIES[name]
    found = unittest.TestSuite()
    for end in ends:
        kind = getattr(transformers, family.config.removesuffix("Config") + end)
        kind._supports_sdpa = True  # or the tests would be skipped: what sdpa lacks, such as a cap, is ours
        attributes = {"all_model_classes": (kind,), "model_tester": Tester(family)}
        tests = type(f"{kind.__name__}Test", (common.ModelTesterMixin, unittest.TestCase), attributes)
        names = [test for test in sorted(dir(tests)) if test.startswith(TESTS) and callable(getattr(tests, test))]
        found.addTests(tests(test) for test in names)
    return found


def main(chosen: list[str]) -> int:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    if transformers.__version__ != VERSION:
        raise SystemExit(f"transformers {transformers.__version__} is installed; these are the tests of {VERSION}")
    enable()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        common = loaded(fetched(Path(folder)))
        for name in chosen or FAMILIES:
            result = unittest.TestResult()
            with account() as calls:
                suite(common, name).run(result)
            failures = [*result.failures, *result.errors]
            passed = result.testsRun - len(failures) - len(result.skipped)
            bad += len(failures) + (not calls.taken)
            print(
                f"{name:10} {passed:3} passed, {len(failures)} failed, {len(result.skipped)} skipped, "
                f"{calls.taken.total():6,} calls computed by Limelight",
                flush=True,
            )
            for why, count in Counter(trace.strip().splitlines()[-1] for _, trace in failures).items():
                first = next(test for test, trace in failures if trace.strip().endswith(why))
                print(f"  {count} FAILED, as {first.id().removeprefix('__main__.')}: {why}")
            for why, count in Counter(why for _, why in result.skipped).items():
                print(f"  {count} skipped: {why}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
