"""Prepare a release: check the state of the checkout, build and check its files, and tag it.

    python scripts/release.py 0.2.0 --dry-run    # everything but the tag
    python scripts/release.py 0.2.0

It needs `pip install -c constraints.txt ".[site]" build`.

Before, in one commit: the version in `pyproject.toml`, `src/limelight/_version.py`, `CITATION.cff` (with its date) and
`docs/faq.md`, and in `CHANGELOG.md` the lines under `[Unreleased]` moved to a section `## [0.2.0] - YYYY-MM-DD`. The
tag is made after a question, and not pushed: pushing it starts the workflow `wheels`, which builds for every platform
and publishes.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from check_wheel import Problem, check

ROOT = Path(__file__).resolve().parents[1]
#: Where the version stands: files, and the line of each.
PLACES = {
    "pyproject.toml": r'^version = "(.+)"$',
    "src/limelight/_version.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
    "docs/faq.md": r"^  version = \{(.+)\},$",
}


def versions() -> dict[str, str]:
    """The version that each file states."""
    found = {}
    for name, line in PLACES.items():
        match = re.search(line, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        if not match:
            raise Problem(f"{name} states no version")
        found[name] = match[1]
    return found


def sections(changelog: str) -> dict[str, str]:
    """The text of each section of a changelog by the version in its heading, newest first."""
    parts = re.split(r"^## \[(.+?)\](?: - \d{4}-\d{2}-\d{2})?$", changelog, flags=re.MULTILINE)
    return {version: text.strip() for version, text in zip(parts[1::2], parts[2::2], strict=True)}


def git(*arguments: str) -> str:
    """What a git command prints."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def check_state(version: str) -> None:
    """Whether the checkout is that of a version.

    Raises:
        Problem: it has uncommitted changes, another version, no text in the changelog, or the tag exists.
    """
    changed = git("status", "--porcelain")
    if changed:
        raise Problem(f"there are uncommitted changes:\n{changed}")
    other = [f"{name} ({found})" for name, found in versions().items() if found != version]
    if other:
        raise Problem(f"another version than {version} stands in {', '.join(other)}")
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$", changelog, re.MULTILINE):
        raise Problem(f"CHANGELOG.md has no heading `## [{version}] - YYYY-MM-DD`")
    texts = sections(changelog)
    if not texts[version] or texts.get("Unreleased"):
        raise Problem(f"CHANGELOG.md: the lines under [Unreleased] belong under [{version}]")
    if git("tag", "--list", f"v{version}"):
        raise Problem(f"the tag v{version} exists")


def check_interface(version: str) -> None:
    """Whether what changes for users since the last version may change in this one, and is said.

    Raises:
        Problem: something of the last version would break, in a version that only mends, or without a word about it.
    """
    try:
        from check_api import broken_since, last_version  # they need griffe, which the tests of the rest do not
    except ImportError as error:
        raise Problem('griffe is not installed: pip install -c constraints.txt ".[site]"') from error

    last = last_version()
    lines = broken_since(last) if last else []
    print(*lines or [f"nothing of {last or 'an earlier version'} would break"], sep="\n")
    judge_changes(version, last, lines, sections((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))[version])


def judge_changes(version: str, last: str | None, lines: list[str], said: str) -> None:
    """Whether a version may have the changes of the interface since the last one, with what the changelog says.

    Raises:
        Problem: it may not.
    """
    if last and lines and version.split(".")[:2] == last.removeprefix("v").split(".")[:2]:
        raise Problem(f"code for {last} would break; {version} may only mend: give it a higher second number")
    if lines and not re.search(r"^### (Changed|Removed)$", said, re.MULTILINE):
        raise Problem(
            f"code for {last} would break, and [{version}] of CHANGELOG.md has no `### Changed` or `### Removed`"
        )


def check_files(folder: Path) -> None:
    """Build the source distribution, and from it the wheel of this platform, and check the wheel."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True)
    check(next(folder.glob("*.whl")), folder, reuse=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="the version to release, as in pyproject.toml: 0.2.0")
    parser.add_argument("--dry-run", action="store_true", help="check and build, without a tag")
    options = parser.parse_args()
    tag = f"v{options.version}"
    try:
        check_state(options.version)
        check_interface(options.version)
        with tempfile.TemporaryDirectory() as name:
            check_files(Path(name))
    except (Problem, subprocess.CalledProcessError) as problem:
        sys.exit(f"not released: {problem}")
    if options.dry_run:
        print(f"good; without --dry-run, {tag} would be made at {git('rev-parse', '--short', 'HEAD')}")
    elif input(f"tag {git('log', '-1', '--oneline')!r} as {tag}? [y/N] ").strip().lower() in ("y", "yes"):
        git("tag", "--annotate", tag, "--message", f"Limelight {options.version}")
        print(f"tagged; `git push origin {tag}` builds the wheels and publishes them")
    else:
        print("not tagged")


if __name__ == "__main__":
    main()
