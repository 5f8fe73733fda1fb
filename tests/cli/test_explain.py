"""``limelight explain``, and how the command line complains."""

import json
import sys

import pytest
import torch
from typer.testing import CliRunner

import limelight
from limelight import Causal, Keys, Window
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


SETTINGS = {
    "a sink": (["--sink"], {"sink": torch.zeros(4)}),
    "first keys": (
        ["--pattern", "window", "--back", "9", "--first", "3"],
        {"pattern": Causal() & (Window(9, 0) | Keys(3))},
    ),
    "decoding": (["--queries", "1", "--batch", "3"], {}),
    "documents": (["--documents", "4"], {"layout": limelight.Packed((16,) * 4)}),
    "rules": (
        ["--score", "softcap", "--score", "alibi"],
        {"scores": (limelight.SoftCap(50.0), limelight.ALiBi(torch.zeros(4)))},
    ),
    "t5": (["--score", "t5"], {"scores": (limelight.RelativeBias(torch.zeros(4, 32)),)}),
    "bias": (["--score", "bias"], {"scores": (limelight.Bias(torch.zeros(64, 64)),)}),
    "additive": (["--compare", "additive"], {"compare": limelight.Additive(torch.zeros(8))}),
    "cosine": (["--compare", "cosine"], {"compare": limelight.CosineSimilarity()}),
    "dropout": (["--dropout", "0.1"], {"dropout": 0.1}),
    "observations": (
        ["--observe", "entropy", "--observe", "blocks"],
        {"observe": limelight.Observe(entropy=True, blocks=(64, 64))},
    ),
    "8 bits": (["--cache", "int8"], {}),
    "a backend": (["--backend", "reference"], {"backend": "reference"}),
}


@pytest.mark.parametrize(("options", "settings"), SETTINGS.values(), ids=SETTINGS)
def test_every_setting_of_the_operator_has_an_option(options, settings):
    """The explanation is that of the same call in Python."""
    sizes = ["--heads", "4", "--key-value-heads", "2", "--length", "64", "--width", "8"]
    result = run.invoke(app, ["explain", *sizes, *options, "--json"])
    assert result.exit_code == 0, result.output
    batch, Lq = (3, 1) if "--batch" in options else (1, 64)
    query, key = torch.zeros(batch, 4, Lq, 8), torch.zeros(batch, 2, 64, 8)
    if "--cache" in options:
        key = limelight.Quantized.of(key, "int8", rotate=True)
    expected = limelight.explain(query, key, key, **{"pattern": Causal(), **settings})
    found = json.loads(result.output)
    for name in ("backend", "reasons", "pairs", "all_pairs", "form", "memory", "eight_bits"):
        assert found[name] == json.loads(json.dumps(getattr(expected, name))), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--score", "x"], "`--score` must be one of alibi, t5, bias, softcap, but it is 'x'"),
        (["--compare", "x"], "`--compare` must be one of dot, additive, cosine"),
        (["--observe", "x"], "`--observe` must be one of logsumexp"),
        (["--cache", "int4"], "`--cache` must be one of int8"),
        (["--dropout", "2"], "`--dropout` must be a probability"),
        (["--backend", "x"], "`--backend` must be None, 'auto' or one of"),
        (["--length", "10", "--documents", "3"], "`--length` must be a multiple of --documents"),
    ],
)
def test_settings_that_cannot_be(options, message):
    result = run.invoke(app, ["explain", *options])
    assert result.exit_code != 0
    assert message in str(result.exception)
