"""Compress the files of wheels once more, in place, with zopfli: the same files, about 4 % less to download.

    pip install zopfli
    python scripts/compress_wheel.py wheelhouse        # a folder, or wheels

The format stays that of every wheel (deflate), so pip needs nothing to install it.
"""

import argparse
import zipfile
from pathlib import Path
from typing import Any

import zopfli.zlib

ROUNDS = 5  # more gain less than a thousandth
HEADER, TAIL = 2, 4  # bytes that zlib has around deflate


class Compressor:
    """What `zipfile` expects of a compressor: it compresses all data at the end."""

    def __init__(self, *_: Any) -> None:
        self.data = bytearray()

    def compress(self, data: bytes) -> bytes:
        self.data += data
        return b""

    def flush(self) -> bytes:
        return bytes(zopfli.zlib.compress(bytes(self.data), numiterations=ROUNDS)[HEADER:-TAIL])


def compress(wheel: Path) -> None:
    """Replace a wheel by a smaller one with the same files."""
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member, old.read(member), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller) as new:
        if [(each.filename, new.read(each)) for each in new.infolist()] != [
            (each.filename, old.read(each)) for each in old.infolist()
        ]:
            raise ValueError(f"{wheel.name}: the files have changed")
    print(f"{wheel.name}: {wheel.stat().st_size:,} bytes, now {smaller.stat().st_size:,}")
    smaller.replace(wheel)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", nargs="+", type=Path, metavar="WHEEL", help="wheels, or folders of wheels")
    zipfile._get_compressor = Compressor  # zipfile has no public way to choose one
    for path in parser.parse_args().wheels:
        for wheel in sorted(path.glob("*.whl")) if path.is_dir() else [path]:
            compress(wheel)


if __name__ == "__main__":
    main()
