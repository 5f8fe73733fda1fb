"""Build the wheels of other platforms on this machine, by Zig's Clang.

    pip install ziglang ninja cmake scikit-build-core wheel zopfli
    python scripts/build_wheels.py                                    # all of them, into wheelhouse
    python scripts/build_wheels.py --platform win_amd64 -o build/wheels
    python scripts/check_wheel.py --no-install wheelhouse

Releases are built by the workflow `wheels`, each on a machine that can also run it. This script builds what such a
machine would, so that a change can be compiled for every system before it is pushed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {  # tag of the wheel: target of Zig
    "manylinux_2_28_x86_64": "x86_64-linux-gnu.2.28",
    "manylinux_2_28_aarch64": "aarch64-linux-gnu.2.28",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}


def build(platform: str, folder: Path) -> Path:
    """The wheel of a platform."""
    settings = {
        "build-dir": f"build/zig-{platform}",
        "install.strip": "false",  # the linker strips
        "cmake.define.CMAKE_TOOLCHAIN_FILE": str(ROOT / "native/cmake/zig.cmake"),
        "cmake.define.LIMELIGHT_TARGET": TARGETS[platform],
    }
    given = [each for name, value in settings.items() for each in ("--config-settings", f"{name}={value}")]
    place = folder / platform
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", *given]
    subprocess.run([*pip, "--wheel-dir", place, ROOT], check=True, env=os.environ | {"CMAKE_GENERATOR": "Ninja"})
    built = next(place.glob("*.whl"))
    tag = [sys.executable, "-m", "wheel", "tags", "--platform-tag", platform, built]
    name = subprocess.run(tag, check=True, capture_output=True, text=True).stdout.split()[-1]
    wheel = (place / name).replace(folder / name)
    built.unlink(missing_ok=True)
    place.rmdir()
    subprocess.run([sys.executable, ROOT / "scripts/compress_wheel.py", wheel], check=True)
    return wheel


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="TAG",
                        help=f"of {', '.join(TARGETS)} (default: all)")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=Path("wheelhouse"), help="default: %(default)s")
    options = parser.parse_args()
    for platform in options.platform:
        print(build(platform, options.output.resolve()), flush=True)


if __name__ == "__main__":
    main()
