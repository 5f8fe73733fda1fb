"""Compare the public interface with that of an earlier version, and list what would break code that uses it.

    pip install -c constraints.txt ".[site]" && python scripts/check_api.py    # with the last tag v*
    python scripts/check_api.py v0.2.0

The interface is what the reference of the site has: the modules of `MODULES` in docs/site/hooks.py, of each what it
lists in `__all__` or else defines. The code is read, not imported. Exits with 1 if anything would break.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]


def public_modules() -> list[str]:
    """The modules of the reference."""
    for part in ast.parse((ROOT / "docs/site/hooks.py").read_text(encoding="utf-8")).body:
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "MODULES":
            return [name for group in ast.literal_eval(part.value).values() for name in group]
    raise LookupError("docs/site/hooks.py has no MODULES")


def broken(before: Path, after: Path) -> list[str]:
    """What of the interface below one folder of sources is gone or has changed below another, a line each."""
    old, new = (griffe.load("limelight", search_paths=[folder], resolve_aliases=True) for folder in (before, after))
    lines = []
    for name in public_modules():
        there, here = interface(old, name), interface(new, name)
        if there is not None and here is None:
            lines.append(f"{name}: the module is gone")
        elif there is not None and here is not None:
            for change in griffe.find_breaking_changes(there, here):
                line = re.sub(r"\x1b\[[\d;]*m", "", change.explain(griffe.ExplanationStyle.ONE_LINE))  # without colours
                lines.append(f"{name}: {line.partition(': ')[2].strip()}")
    return list(dict.fromkeys(lines))


def interface(package: griffe.Object, name: str) -> griffe.Module | None:
    """The interface of a module, without modules in it, which are compared alone; `None` if there is no such module."""
    inside = name.partition(".")[2]
    try:
        module = package[inside] if inside else package
    except KeyError:
        return None
    found = griffe.Module(module.name, filepath=module.filepath, parent=module.parent)
    found.members = {
        name: member for name, member in module.members.items() if member.is_public and not member.is_module
    }
    return found


def git(*arguments: str) -> bytes:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True).stdout


def last_version() -> str | None:
    """The newest tag of a version before this commit; `None` where there is none."""
    tags = git("tag", "--list", "v*", "--merged", "HEAD", "--sort", "-version:refname").decode().split()
    return tags[0] if tags else None


def broken_since(version: str) -> list[str]:
    """What would break code that uses the interface of a version: a tag, or another name of a commit."""
    with tempfile.TemporaryDirectory() as name:
        with tarfile.open(fileobj=io.BytesIO(git("archive", version, "src"))) as archive:
            archive.extractall(name, filter="data")
        return broken(Path(name) / "src", ROOT / "src")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help="what to compare with: a tag, or another name of a commit")
    version = parser.parse_args().version or last_version()
    if version is None:
        print("there is no earlier version to compare with")
        return
    try:
        lines = broken_since(version)
    except subprocess.CalledProcessError as error:
        sys.exit(f"not compared with {version}: {error.stderr.decode().strip()}")
    print("\n".join(lines) or f"nothing of {version} would break")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main()
