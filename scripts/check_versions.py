"""Run a wheel under several versions of Python and PyTorch, each pair in a new virtual environment.

    python scripts/check_versions.py wheelhouse/limelight_attention-0.1.0-py3-none-manylinux_2_28_x86_64.whl
    python scripts/check_versions.py WHEEL --python 3.10 3.13 --torch 2.10 2.14

An interpreter is found among those of pyenv or on `PATH` (`python3.13`); packages come from the index that pip is set
up for, by `uv` where that is installed. Each pair imports Limelight, compares the native kernels with PyTorch's
attention, and prints whose threads they use. The table says `good`, `failed`, or why a pair could not be tried; only
`failed` is an error.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from check_wheel import SMOKE

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
TORCHES = ("2.10", "2.11", "2.12", "2.13", "2.14")
MINUTES = 20  # of an installation

THREADS = """
import platform
from limelight.backends.native import instruction_set, library
assert torch.equal(ours, limelight.attention(q, k, v, pattern=limelight.Causal(), backend="native"))
print(f"Python {platform.python_version()}, torch {torch.__version__}: {instruction_set()},",
      "threads of PyTorch" if library.shares_threads() else "threads of its own")
"""


def interpreter(version: str) -> Path | None:
    """That of a version of Python."""
    found = shutil.which(f"python{version}")
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    installed = sorted(root.glob(f"{version}.*/bin/python"))  # before `PATH`, whose python3.N may be a shim of pyenv
    return installed[-1] if installed else Path(found) if found else None


def install(python: Path, folder: Path, packages: list[str]) -> str:
    """Install packages into a new environment; the last line of the error, or nothing."""
    subprocess.run([python, "-m", "venv", *(["--without-pip"] if shutil.which("uv") else []), folder], check=True)
    inside = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip = ["uv", "pip", "install", "--python"] if shutil.which("uv") else [inside, "-m", "pip", "install"]
    command = [*pip, *([inside] if shutil.which("uv") else []), "--quiet", "--only-binary", ":all:", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * MINUTES)
    except subprocess.TimeoutExpired:
        return f"not installed in {MINUTES} minutes"
    lines = done.stderr.strip().splitlines() or ["no reason"]
    return "" if done.returncode == 0 else f"not installable: {lines[-1].strip()}"


def tried(wheel: Path, python: Path, torch: str, folder: Path) -> str:
    """What one pair comes to."""
    environment = folder / "no_compiler"
    problem = install(python, environment, [f"torch=={torch}.*", str(wheel)])
    if problem:
        return problem
    inside = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    done = subprocess.run([inside, "-c", SMOKE + THREADS], cwd=folder, capture_output=True, text=True, timeout=600)
    print(done.stdout.strip() or done.stderr.strip(), flush=True)
    return "good" if done.returncode == 0 else "failed"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, metavar="WHEEL", help="of Limelight, for this machine")
    parser.add_argument("--python", nargs="+", default=PYTHONS, metavar="X.Y", help="default: %(default)s")
    parser.add_argument("--torch", nargs="+", default=TORCHES, metavar="X.Y", help="default: %(default)s")
    options = parser.parse_args()
    wheel = options.wheel.resolve()
    if not wheel.is_file():
        parser.error(f"there is no file {wheel}")
    rows = []
    for version in options.python:
        python = interpreter(version)
        for torch in options.torch:
            with tempfile.TemporaryDirectory() as folder:
                found = "no such interpreter" if python is None else tried(wheel, python, torch, Path(folder))
            rows.append((version, torch, found))
    print("\n| Python | PyTorch | |\n|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    if any(found == "failed" for *_, found in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
