"""Versions and changelog agree, and `scripts/check_wheel.py` refuses what must not be published."""

import zipfile

import check_wheel
import pytest
import release
from check_wheel import Problem

import limelight

GOOD = "limelight_attention-1.2-py3-none-manylinux_2_28_x86_64.whl"
DUMP = """\
Dynamic Section:
  NEEDED               libstdc++.so.6
  NEEDED               libm.so.6

Version References:
  required from libc.so.6:
    0x09691a75 0x00 08 GLIBC_2.2.5
    0x069691b4 0x00 05 GLIBC_2.34
    0x06969197 0x00 04 GLIBC_2.17
  required from libstdc++.so.6:
    0x0bafd173 0x00 02 CXXABI_1.3
    0x0297f863 0x00 03 GLIBCXX_3.4.32
"""


def test_every_file_states_the_version():
    assert set(release.versions().values()) == {limelight.__version__}


def test_the_changelog_has_the_version_or_what_will_be_in_it():
    sections = release.sections((release.ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert next(iter(sections)) == "Unreleased"
    assert sections.get(limelight.__version__) or sections["Unreleased"]


def test_sections_of_a_changelog():
    text = "# Log\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-02\n\n### Added\n\n- x\n\n## [0.1.0] - 2026-12-01\n- y\n"
    assert release.sections(text) == {"Unreleased": "", "0.2.0": "### Added\n\n- x", "0.1.0": "- y"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small project at version 0.2.0 in git, ready for its release."""
    for name, line in {
        "pyproject.toml": 'version = "0.2.0"\n',
        "src/limelight/_version.py": '__version__ = "0.2.0"\n',
        "CITATION.cff": "version: 0.2.0\n",
        "docs/faq.md": "  version = {0.2.0},\n",
        "CHANGELOG.md": "## [Unreleased]\n\n## [0.2.0] - 2027-01-02\n\n- x\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(line)
    monkeypatch.setattr(release, "ROOT", tmp_path)
    release.git("init", "--quiet")
    commit()
    return tmp_path


def commit():
    release.git("add", "--all")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    release.git(*author, "commit", "--quiet", "--message", "x")


def test_a_checkout_ready_for_its_release(checkout):
    release.check_state("0.2.0")


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("CITATION.cff", "version: 0.1.0\n", r"another version than 0\.2\.0 stands in CITATION\.cff \(0\.1\.0\)"),
        ("CITATION.cff", "title: x\n", "states no version"),
        ("CHANGELOG.md", "## [Unreleased]\n\n- x\n", "no heading"),
        ("CHANGELOG.md", "## [Unreleased]\n\n- y\n\n## [0.2.0] - 2027-01-02\n\n- x\n", "under .Unreleased. belong"),
    ],
)
def test_a_checkout_that_is_not(checkout, file, text, reason):
    (checkout / file).write_text(text)
    with pytest.raises(Problem, match="uncommitted changes"):
        release.check_state("0.2.0")
    commit()
    with pytest.raises(Problem, match=reason):
        release.check_state("0.2.0")


def test_a_release_is_tagged_once(checkout):
    release.git("tag", "v0.2.0")
    with pytest.raises(Problem, match=r"the tag v0\.2\.0 exists"):
        release.check_state("0.2.0")


def test_what_a_version_may_change():
    changes = ["limelight: attention(scale): Parameter was removed"]
    release.judge_changes("0.2.1", "v0.2.0", [], "- x")
    release.judge_changes("0.2.0", None, [], "- x")
    release.judge_changes("0.3.0", "v0.2.0", changes, "### Changed\n\n- x")
    with pytest.raises(Problem, match="may only mend"):
        release.judge_changes("0.2.1", "v0.2.0", changes, "### Changed\n\n- x")
    with pytest.raises(Problem, match="no `### Changed`"):
        release.judge_changes("0.3.0", "v0.2.0", changes, "### Added\n\n- x")


def wheel(folder, more=(), without=(), version="1.2"):
    path = folder / GOOD
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("limelight/_version.py", f'__version__ = "{version}"\n')
        for name in {*check_wheel.REQUIRED, *more} - set(without):
            archive.writestr(name, b"")
    return path


def test_a_good_wheel(tmp_path):
    path = wheel(tmp_path)
    assert check_wheel.check_name(path) == "manylinux_2_28_x86_64"
    check_wheel.check_contents(path)


@pytest.mark.parametrize("tag", ["cp312-cp312-linux_x86_64", "py3-none-any", "cp312-abi3-win_amd64"])
def test_a_wheel_is_one_for_a_platform_and_every_python(tmp_path, tag):
    with pytest.raises(Problem, match=f"the tag is {tag}"):
        check_wheel.check_name(tmp_path / f"limelight_attention-1.2-{tag}.whl")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"without": [check_wheel.LIBRARY]}, "without limelight/liblimelight_native.so"),
        ({"more": ["limelight/kernel.cpp"]}, r"holds limelight/kernel\.cpp"),
        ({"more": ["tests/test_x.py"]}, r"holds tests/test_x\.py"),
        ({"version": "1.1"}, "the version in its name is 1.2"),
    ],
)
def test_the_contents_of_a_wheel(tmp_path, change, reason):
    with pytest.raises(Problem, match=reason):
        check_wheel.check_contents(wheel(tmp_path, **change))


def test_a_wheel_is_small(tmp_path, monkeypatch):
    monkeypatch.setattr(check_wheel, "MAX_BYTES", 100)
    with pytest.raises(Problem, match="more than 100"):
        check_wheel.check_contents(wheel(tmp_path))


def test_what_a_library_needs():
    libraries, newest = check_wheel.needs(DUMP)
    assert libraries == ["libstdc++.so.6", "libm.so.6"]
    assert newest == {"GLIBC": (2, 34), "CXXABI": (1, 3), "GLIBCXX": (3, 4, 32)}
    with pytest.raises(Problem, match=r"GLIBC 2\.34, GLIBCXX 3\.4\.32 are newer than manylinux_2_28_x86_64 promises"):
        check_wheel.check_needs(libraries, newest, "manylinux_2_28_x86_64")
    check_wheel.check_needs(libraries, newest, "linux_x86_64")
    for foreign in ("libtorch.so", "libgomp.so.1"):
        with pytest.raises(Problem, match=f"needs {foreign}"):
            check_wheel.check_needs([*libraries, foreign], {}, "linux_x86_64")


def test_what_a_library_needs_on_windows():
    libraries, newest = check_wheel.needs("\tDLL Name: KERNEL32.dll\n\tDLL Name: libomp.dll\n")
    assert (libraries, newest) == (["KERNEL32.dll", "libomp.dll"], {})
    check_wheel.check_needs(libraries[:1], newest, "win_amd64")
    with pytest.raises(Problem, match=r"needs libomp\.dll"):
        check_wheel.check_needs(libraries, newest, "win_amd64")


def test_a_wheel_is_compressed_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip("zopfli", reason="compress_wheel.py needs zopfli")
    import compress_wheel

    wheel = tmp_path / GOOD
    files = {"limelight/a.py": b"x = 1\n" * 5000, "limelight/empty.py": b""}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    before = wheel.stat().st_size
    monkeypatch.setattr("sys.argv", ["compress_wheel.py", str(tmp_path)])
    monkeypatch.setattr(zipfile, "_get_compressor", zipfile._get_compressor)  # restored at the end
    compress_wheel.main()
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files
    assert wheel.stat().st_size < before
    assert list(tmp_path.iterdir()) == [wheel]


def test_versions_that_cannot_be_tried_are_no_error(tmp_path, monkeypatch, capsys):
    import check_versions

    wheel = tmp_path / GOOD
    wheel.touch()
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["check_versions.py", str(wheel), "--python", "3.10", "--torch", "2.10", "2.14"])
    check_versions.main()
    assert "| 3.10 | 2.14 | no such interpreter |" in capsys.readouterr().out
    monkeypatch.setattr(check_versions, "interpreter", lambda version: tmp_path)
    monkeypatch.setattr(check_versions, "tried", lambda *_: "failed")
    with pytest.raises(SystemExit):
        check_versions.main()
