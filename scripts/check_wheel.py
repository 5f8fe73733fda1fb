"""Check a wheel as its users meet it: tag, size, contents, libraries, and a run without a compiler.

    python scripts/check_wheel.py                      # builds the wheel of this checkout first
    python scripts/check_wheel.py wheelhouse           # those of a folder; a wheel for this machine is also run
    python scripts/check_wheel.py --reuse              # run with the dependencies of this Python, without downloads

A wheel is one for a platform, `py3-none-PLATFORM`: the native library has neither Python nor PyTorch in it. On Linux
the symbol versions that the library needs are compared with the `manylinux` tag, and on Linux and Windows it may need
no library that such a system lacks, nor an OpenMP runtime: it uses that of PyTorch. Then the wheel is installed into a
new virtual environment, with no other folder on `PATH`, and computes attention by its native kernels, with one OpenMP
runtime in the process. Without `--reuse`, the README's first command runs, too, and what it took is printed: seconds of
CPU (user and system) from the new environment to the answer, of which downloads are a small part.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_BYTES = 3_000_000
LIBRARY = "limelight/liblimelight_native.so"
REQUIRED = (
    LIBRARY,
    "limelight/py.typed",
    "limelight/microscope/page/view.js",
    "limelight/microscope/page/template.html",
)
FORBIDDEN = (".cpp", ".h", ".o", ".ts", ".pyc")
NAME = re.compile(r"limelight_attention-(?P<version>[^-]+)-(?P<python>[^-]+)-(?P<abi>[^-]+)-(?P<platform>[^-]+)\.whl")
MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_")
#: What every Linux of the tag has, and every Windows since 10.
SYSTEM = ("libc.so", "libm.so", "libstdc++.so", "libgcc_s.so", "libpthread.so", "libdl.so", "librt.so", "ld-linux")
SYSTEM_OF_WINDOWS = ("kernel32.dll", "ntdll.dll", "api-ms-win-")
#: The newest symbols of libstdc++ and libgcc in manylinux_2_28.
NEWEST = {"GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
#: What remains of the environment beside the settings of pip.
KEPT = ("HOME", "TMPDIR", "TEMP", "SYSTEMROOT")

SMOKE = """\
import pathlib, sys, torch, limelight
assert "no_compiler" in limelight.__file__, f"another Limelight was imported: {limelight.__file__}"
q, k, v = torch.randn(3, 1, 4, 65, 32).unbind(0)
ours = limelight.attention(q, k, v, pattern=limelight.Causal(), backend="native")
theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
torch.testing.assert_close(ours, theirs)
from limelight.backends.native import library
assert library.shares_threads() == ("backend: OpenMP" in torch.__config__.parallel_info()), "two pools of threads"
maps = pathlib.Path("/proc/self/maps")
if maps.exists():
    runtimes = {line.split()[-1] for line in maps.read_text().splitlines() if "omp" in line and ".so" in line}
    runtimes = {path for path in runtimes if pathlib.Path(path).name.startswith(("libgomp", "libomp", "libiomp"))}
    print("OpenMP runtimes:", *sorted(runtimes))
    assert len(runtimes) <= 1, "two OpenMP runtimes in one process"
"""


class Problem(Exception):
    """What is wrong with a wheel."""


def build(folder: Path) -> Path:
    """The wheel of this checkout, built by pip in a folder."""
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT], check=True)
    return next(folder.glob("*.whl"))


def check_name(wheel: Path) -> str:
    """The platform in the name of a wheel for every Python."""
    name = NAME.fullmatch(wheel.name)
    if not name:
        raise Problem("the name is not that of a wheel of Limelight")
    if (name["python"], name["abi"]) != ("py3", "none") or name["platform"] == "any":
        raise Problem(f"the tag is {name['python']}-{name['abi']}-{name['platform']}, and must be py3-none-PLATFORM")
    return name["platform"]


def check_contents(wheel: Path) -> None:
    """Size and files."""
    size = wheel.stat().st_size
    if size > MAX_BYTES:
        raise Problem(f"{size:,} bytes, more than {MAX_BYTES:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        size_of_library = archive.getinfo(LIBRARY).file_size if LIBRARY in names else 0
        in_name, version = wheel.name.split("-")[1], archive.read("limelight/_version.py").decode()
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise Problem(f"without {', '.join(missing)}")
    wrong = [name for name in names if name.endswith(FORBIDDEN) or not name.startswith(("limelight/", "limelight_"))]
    if wrong:
        raise Problem(f"holds {', '.join(wrong[:5])}")
    if f'"{in_name}"' not in version:
        raise Problem(f"the version in its name is {in_name}, and _version.py has another")
    print(f"  {size:,} bytes, {len(names)} files, the native library {size_of_library:,} bytes unpacked")


def needs(dump: str) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    """The libraries of a dump by `objdump -p`, and the newest version of each kind of symbol (GLIBC, GLIBCXX, ...)."""
    newest: dict[str, tuple[int, ...]] = {}
    for kind, version in re.findall(r"0x\S+ 0x\S+ \d+ ([A-Z]+)_([\d.]+)$", dump, re.MULTILINE):
        newest[kind] = max(newest.get(kind, ()), tuple(map(int, version.split("."))))
    return re.findall(r"^\s+(?:NEEDED\s+|DLL Name: )(\S+)", dump, re.MULTILINE), newest


def check_library(wheel: Path, platform: str, folder: Path) -> None:
    """What the library of a wheel for Linux or Windows needs, compared with what the tag promises."""
    if "macos" in platform:
        return
    if not shutil.which("objdump"):
        raise Problem("objdump is needed to read its library (apt-get install binutils)")
    with zipfile.ZipFile(wheel) as archive:
        library = archive.extract(LIBRARY, folder)
    dump = subprocess.run(["objdump", "-p", library], check=True, capture_output=True, text=True).stdout
    libraries, newest = needs(dump)
    versions = ", ".join(f"{kind} {'.'.join(map(str, newest[kind]))}" for kind in sorted(newest))
    print(f"  needs {', '.join(libraries)}" + (f"; symbols up to {versions}" if versions else ""))
    check_needs(libraries, newest, platform)


def check_needs(libraries: list[str], newest: dict[str, tuple[int, ...]], platform: str) -> None:
    """Whether every system of a platform has libraries and symbols."""
    system = SYSTEM_OF_WINDOWS if platform.startswith("win") else SYSTEM
    foreign = [name for name in libraries if not name.lower().startswith(system)]
    if foreign:
        raise Problem(f"needs {', '.join(foreign)}, which other systems lack")
    if platform.startswith("win"):
        return
    tags = [(int(major), int(minor)) for major, minor in MANYLINUX.findall(platform)]
    if not tags:
        print(f"  {platform}: for systems like this one; a manylinux wheel is built in its container")
        return
    allowed = {"GLIBC": min(tags), **NEWEST}
    new = [
        f"{kind} {'.'.join(map(str, newest[kind]))}" for kind, limit in allowed.items() if newest.get(kind, ()) > limit
    ]
    if new:
        raise Problem(f"its symbols {', '.join(new)} are newer than {platform} promises")


def is_for_here(platform: str) -> bool:
    """Whether pip would install a wheel of a platform with this Python."""
    listed = subprocess.run([sys.executable, "-m", "pip", "debug", "--verbose"], capture_output=True, text=True).stdout
    return any(f"py3-none-{tag}\n" in listed for tag in platform.split("."))


def run(wheel: Path, folder: Path, reuse: bool) -> None:
    """Install a wheel into a new virtual environment, and use it where `PATH` leads to no compiler."""
    place, before = folder / "no_compiler", _cpu_seconds()
    subprocess.run([sys.executable, "-m", "venv", *(["--without-pip"] if reuse else []), place], check=True)
    scripts = place / ("Scripts" if os.name == "nt" else "bin")
    python = scripts / ("python.exe" if os.name == "nt" else "python")
    kept = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PIP_")}
    settings = {**kept, "PATH": str(scripts)}
    purelib = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(purelib, check=True, capture_output=True, text=True).stdout.strip())
    if reuse:
        paths = [path for path in sys.path if path.endswith("site-packages")]
        (packages / "dependencies.pth").write_text("\n".join(paths))
        install = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(packages),
            str(wheel),
        ]
        subprocess.run(install, check=True)
    else:
        pip = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:", "-c", ROOT / "constraints.txt"]
        subprocess.run([*pip, wheel], check=True, env=settings)
        look = [str(scripts / "limelight"), "look", "The bank is near the river."]
        cached = {**settings, "LIMELIGHT_CACHE": str(folder / "models")}
        subprocess.run(look, check=True, env=cached, cwd=folder, capture_output=True)
        print(f"  from a new environment to the answer of `limelight look`: {_cpu_seconds() - before:.0f} s of CPU")
    explain = [str(python), "-m", "limelight", "explain", "--length", "1024"]
    explained = subprocess.run(explain, check=True, env=settings, cwd=folder, capture_output=True, text=True).stdout
    print("".join(f"  {line}\n" for line in explained.splitlines()[:2]), end="")
    if "backend: native" not in explained:
        raise Problem(f"`limelight explain` does not choose the native kernels:\n{explained}")
    subprocess.run([str(python), "-c", SMOKE], check=True, env=settings, cwd=folder)


def _cpu_seconds() -> float:
    """Time that finished children have taken, in user and system mode; 0 on Windows, which does not count it."""
    times = os.times()
    return times.children_user + times.children_system


def check(wheel: Path, folder: Path, install: bool = True, reuse: bool = False) -> None:
    """All checks of a wheel.

    Raises:
        Problem: the first one that fails.
    """
    print(wheel.name)
    platform = check_name(wheel)
    check_contents(wheel)
    check_library(wheel, platform, folder)
    if not install:
        return
    if is_for_here(platform):
        run(wheel, folder, reuse)
    else:
        print("  for another platform: not run")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "wheels",
        nargs="*",
        type=Path,
        metavar="WHEEL",
        help="wheels, or folders of wheels (default: that of this checkout)",
    )
    parser.add_argument("--reuse", action="store_true", help="run with the dependencies installed beside this Python")
    parser.add_argument("--no-install", action="store_true", help="look at the files only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        given = [each for path in options.wheels for each in (sorted(path.glob("*.whl")) if path.is_dir() else [path])]
        if options.wheels and not given:
            parser.error(f"no wheels in {', '.join(map(str, options.wheels))}")
        for n, wheel in enumerate(given or [build(Path(name))]):
            folder = Path(name) / str(n)
            folder.mkdir()
            try:
                check(wheel.resolve(), folder, not options.no_install, options.reuse)
            except (Problem, subprocess.CalledProcessError) as problem:
                sys.exit(f"{wheel.name}: {problem}")
    print("good")


if __name__ == "__main__":
    main()
