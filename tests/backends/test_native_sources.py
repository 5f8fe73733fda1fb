"""The native sources: each header compiles alone, includes point downwards, and files stay short."""

import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "native" / "src"
FILES = sorted(path for path in SOURCES.parent.rglob("*") if path.suffix in (".h", ".cpp"))
HEADERS = sorted(path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.h"))
FOLDERS = [".", "simd", "tiles", "attention", "layers"]  # a header includes its own folder and those before it
MAX_LINES = 400

COMPILER = shutil.which("g++") or shutil.which("c++")
FLAGS = ["-std=gnu++20", "-fsyntax-only", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", "-ffp-contract=off"]
AVX512 = ["-DLL_AVX512", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
PAIRS = ["-DLL_PAIRS", "-mavx512bf16", "-mavx512vbmi", "-mavx512vnni"]
TARGETS = {  # the code that a header has for other instruction sets and element types, as CMakeLists.txt compiles it
    "avx2_float64": ["-DLL_OF_FLOAT64", "-DLL_AVX2", "-mavx2", "-mfma", "-mf16c"],
    "avx512_float16": ["-DLL_OF_FLOAT16", *AVX512],
    "avx512bf16_bfloat16": ["-DLL_OF_BFLOAT16", *PAIRS, *AVX512],
    "amx_bfloat16": ["-DLL_OF_BFLOAT16", *PAIRS, "-DLL_AMX", "-mamx-tile", "-mamx-bf16", *AVX512],
}

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def check(*arguments: str) -> None:
    assert COMPILER is not None
    done = subprocess.run([COMPILER, *FLAGS, *arguments], cwd=SOURCES, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@needs_compiler
@pytest.mark.parametrize("header", HEADERS)
def test_each_header_compiles_alone(header: str) -> None:
    check("-x", "c++", "-include", header, "/dev/null")


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
@pytest.mark.parametrize("name", TARGETS)
def test_the_kernels_compile_for_other_targets(name: str) -> None:
    check(*TARGETS[name], f"-DLL_NAMESPACE={name}", "-Wno-maybe-uninitialized", "kernel.cpp")


@pytest.mark.parametrize("header", HEADERS)
def test_includes_point_downwards(header: str) -> None:
    def level(path: Path) -> int:
        return FOLDERS.index(path.relative_to(SOURCES).parts[0] if path.parent != SOURCES else ".")

    own = SOURCES / header
    for included in re.findall(r'#include "(.*)"', own.read_text()):
        path = (own.parent / included).resolve()
        if path.parent.name != "include":
            assert level(path) <= level(own), f"{header} includes {included}"


def test_no_header_includes_itself_through_others() -> None:
    includes = {
        path: [(path.parent / name).resolve() for name in re.findall(r'#include "(.*)"', path.read_text())]
        for path in SOURCES.rglob("*.h")
    }
    finished: set[Path] = set()

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        assert path not in above, " -> ".join(each.name for each in (*above, path))
        if path not in finished:
            for each in includes.get(path, []):
                visit(each, (*above, path))
            finished.add(path)

    for path in includes:
        visit(path, ())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_files_are_short(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_LINES
    assert max(map(len, lines)) <= 120
