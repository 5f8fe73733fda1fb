"""``limelight explain``, and how the command line complains."""

import json
import sys

import pytest
from typer.testing import CliRunner

from limelight.cli import app, main

run = CliRunner()


def test_explain_names_backend_pairs_and_reasons():
    result = run.invoke(app, ["explain", "--length", "1024", "--pattern", "window", "--back", "99"])
    assert result.exit_code == 0, result.output
    pairs = 8 * sum(min(i + 1, 100) for i in range(1024))
    assert f"{pairs:,} of {8 * 1024 * 1024:,}" in result.output
    assert "native:" in result.output
    assert "reference:" in result.output


def test_explain_says_how_derivatives_are_taken():
    result = run.invoke(app, ["explain", "--length", "128", "--gradients"])
    assert "derivatives: " in result.output
    assert "a chunk of queries at a time" in result.output


def test_a_wrong_option_is_one_paragraph(capsys, monkeypatch):
    import pytest

    from limelight import cli

    monkeypatch.setattr("sys.argv", ["limelight", "explain", "--dtype", "int8"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "--dtype" in message
    assert "bfloat16" in message
    assert "Traceback" not in message


def test_without_a_gpu_its_backends_are_one_line(monkeypatch):
    import torch

    from limelight.backends.gpu import compatibility

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compatibility, "version", lambda: None)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    result = run.invoke(app, ["explain"])
    assert "flash3, flash2, flash1: for GPUs; PyTorch sees none here" in result.output
    assert "pip install" not in result.output


def test_without_the_library_it_says_what_is_missing_and_what_that_costs(monkeypatch):
    from limelight.backends import native

    monkeypatch.setattr(native.library, "_library", None)
    monkeypatch.setattr(native.library, "_missing", "the native library was not built: install a C++ compiler")
    result = run.invoke(app, ["explain", "--length", "512"])
    assert "native: not available: the native library was not built: install a C++ compiler" in result.output
    assert "backend: reference" in result.output
    assert "not native:" in result.output


@pytest.mark.parametrize(
    ("option", "value"),
    [("--key-value-heads", "-2"), ("--key-value-heads", "0"), ("--key-value-heads", "3"), ("--length", "99999999999")],
)
def test_options_that_cannot_be(option, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["limelight", "explain", option, value])
    with pytest.raises(SystemExit) as ended:
        main()
    message = capsys.readouterr()
    assert ended.value.code == 2
    assert option in message.err
    assert not message.out
    assert "Traceback" not in message.err


def test_a_model_is_explained_by_kinds_of_layers():
    result = run.invoke(app, ["explain", "--model", "minilm", "--length", "64"], env={"COLUMNS": "140"})
    assert result.exit_code == 0, result.output
    assert "minilm: EncoderOnly, 6 layers, float32; a prompt of 64 tokens" in result.output
    assert "MultiHead, Full(), 12 / 12 heads of 32" in result.output
    assert "norm (LayerNorm) not native: LayerNorm has no fused step" in result.output


def test_an_explanation_as_json():
    for given, key in ((["--model", "minilm"], "parts"), (["--length", "99"], "call")):
        result = run.invoke(app, ["explain", *given, "--json"])
        assert result.exit_code == 0, result.output
        values = json.loads(result.output)
        assert (values["format"], values["version"]) == ("limelight.explain", 1)
        assert key in values
    assert values["pairs"] == 8 * 99 * 100 // 2


def test_options_of_a_call_beside_a_model():
    result = run.invoke(app, ["explain", "--model", "minilm", "--heads", "8"])
    assert "`--heads` belongs to a single call" in str(result.exception)
