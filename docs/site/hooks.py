"""What `mkdocs build` adds to the pages of docs/: the front page, the reference, benchmarks, and linked sources.

A page of the reference is made from the docstrings of one public module, whose code is read, not imported. A link that
leaves docs/ leads to a page that is made here from its target, so that the site needs no other host; in the repository
it leads to the file itself.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src"

# The public modules, in reading order: what they list in `__all__`, or else define.
MODULES = {
    "The operator": [
        "limelight",
        "limelight.compat",
        "limelight.compat.flash_attn",
        "limelight.compat.flex",
        "limelight.compat.xformers",
        "limelight.fused",
    ],
    "Layers and models": [
        "limelight.nn",
        "limelight.models",
        "limelight.models.sound",
        "limelight.models.cost",
        "limelight.checkpoints.load",
        "limelight.text",
        "limelight.generation",
    ],
    "Training": ["limelight.training", "limelight.distributed"],
    "The microscope": ["limelight.microscope", "limelight.microscope.heads", "limelight.microscope.subjects"],
    "Integrations": [
        "limelight.integrations.torch",
        "limelight.integrations.transformers",
        "limelight.integrations.kvpress",
        "limelight.integrations.serving",
        "limelight.integrations.serving_observe",
    ],
    "For extensions": [
        "limelight.forms.patterns",
        "limelight.forms.layouts",
        "limelight.forms.coordinates",
        "limelight.forms.spans",
        "limelight.forms.lowering",
        "limelight.backends.contract",
        "limelight.models.families",
        "limelight.benchmark",
    ],
}
BENCHMARKS = ["LIMITS", "long_texts", "exchanged_bytes", "scaling", "scaling_check", "paged", "serving", "predictions"]
PROJECT = ["CHANGELOG", "DESIGN", "CONTRIBUTING"]

# Where a word is defined: these stand first among what a search finds.
FIRST = ("glossary.md", "environment.md", "faq.md")

_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)
_CELL = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
_LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".toml": "toml", ".sh": "sh"}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the parts of the navigation whose pages are made here."""
    for part in config.nav or []:
        if "Reference" in part:
            found = [{title: [{name: f"api/{name}.md"} for name in modules]} for title, modules in MODULES.items()]
            part["Reference"][:0] = ["api/index.md", *found]
        elif "Benchmarks" in part:
            part["Benchmarks"][:0] = ["benchmarks.md"]
            part["Benchmarks"] += [f"project/benchmarks/{name}.md" for name in BENCHMARKS]
        elif "Project" in part:
            part["Project"] = [f"project/{name}.md" for name in PROJECT]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files outside of docs/, and from docstrings."""
    handbook = files.get_file_from_path("README.md")
    assert handbook is not None
    handbook.dest_uri = "handbook.html"  # the front page is another one
    made = {f"api/{module}.md": _reference(module) for group in MODULES.values() for module in group}
    made |= {"api/index.md": _contents(), "benchmarks.md": _benchmarks()}
    made["index.md"] = (DOCS / "site" / "front.md").read_text("utf-8")
    todo = list(DOCS.glob("*.md"))
    todo += [ROOT / f"{name}.md" for name in PROJECT] + [ROOT / "benchmarks" / f"{name}.md" for name in BENCHMARKS]
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            if path.parent != DOCS:
                made[_page_of(path)] = _page(path)
            todo += _targets(path)
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page to files outside of docs/ to the pages that are made from them."""
    if page.file.src_uri in FIRST:
        page.meta["search"] = {"boost": 4}
    path = _path_of(page.file.src_uri)
    if path is None:
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = _target(path, link[1])
        if target is None:
            return link[0]
        return posixpath.relpath(_page_of(target), here or ".") + (link[2] or "")

    parts = _FENCE.split(markdown)
    parts[::2] = [_LINK.sub(led, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    r"""Write `|` for the `\|` of code in a table, as GitHub does; keep source code out of the search."""
    source = '<details class="mkdocstrings-source"'
    html = html.replace(source, f"{source} data-search-exclude")
    return _CELL.sub(lambda cell: cell[0].replace("\\|", "|"), html)


def _page_of(path: Path) -> str:
    """The name of the page that is made from a file or folder of the project."""
    name = path.relative_to(ROOT).as_posix()
    if path.parent == DOCS:
        return path.name
    module = ".".join(path.relative_to(SOURCE).with_suffix("").parts) if path.is_relative_to(SOURCE) else ""
    module = module.removesuffix(".__init__")
    if any(module in group for group in MODULES.values()):
        return f"api/{module}.md"
    if path.suffix == ".md":
        return f"project/{name}"
    return f"source/{name.replace('/.', '/dot.')}.md"


def _path_of(page: str) -> Path | None:
    """The file of the project from which a page is made; `None` where there is none."""
    if page.startswith("project/"):
        return ROOT / page.removeprefix("project/")
    if page.startswith("source/"):
        return ROOT / page.removeprefix("source/").removesuffix(".md").replace("/dot.", "/.")
    return None if "/" in page else DOCS / page


def _target(path: Path, link: str) -> Path | None:
    """The file or folder that a link of a file leads to, if that is one of the project without a page of its own."""
    if "://" in link:
        return None
    folder = path if path.is_dir() else path.parent
    target = Path(posixpath.normpath((folder / link).as_posix()))
    if (target / "README.md").exists() and target != ROOT:
        target = target / "README.md"
    inside = target.is_relative_to(DOCS) and path.is_relative_to(DOCS)
    return None if inside or not target.exists() or not target.is_relative_to(ROOT) else target


def _targets(path: Path) -> list[Path]:
    """The files and folders that a page which is made from ``path`` leads to."""
    text = path.read_text("utf-8") if path.suffix == ".md" else _page(path)
    if path.suffix not in ("", ".md") or _page_of(path).startswith("api/"):
        return []
    links = _LINK.findall("".join(_FENCE.split(text)[::2]))
    found = [target for link, _ in links if (target := _target(path, link))]
    return [target for target in found if not target.is_relative_to(DOCS) and not _page_of(target).startswith("api/")]


def _page(path: Path) -> str:
    """The Markdown of a page that is made from a file or a folder."""
    if path.suffix == ".md":
        return path.read_text("utf-8")
    head = f"---\nsearch:\n  exclude: true\n---\n# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        inside = sorted(part for part in path.iterdir() if part.suffix in _LANGUAGES and not part.name.startswith("."))
        return head + "".join(f"- [{part.name}]({part.name})\n" for part in inside)
    language = _LANGUAGES.get(path.suffix, "text")
    return head + f'``````{{ .{language} linenums="1" }}\n{path.read_text("utf-8")}\n``````\n'


def _contents() -> str:
    """The first page of the reference: every module with the first line of its docstring."""
    lines = ["# API reference", "", "Made from the docstrings: signatures, shapes, errors, and the code itself.", ""]
    for title, modules in MODULES.items():
        lines += [f"## {title}", "", "| module | |", "|---|---|"]
        lines += [f"| [`{module}`]({module}.md) | {_summary(module)} |" for module in modules] + [""]
    return "\n".join(lines)


def _reference(module: str) -> str:
    """A page of the reference; what `limelight` itself offers of `limelight.forms` has its place there."""
    first, listed = set(_listed("limelight")), _listed(module)
    if not module.startswith("limelight.forms.") or not listed:
        return f"::: {module}\n"
    rest = [name for name in listed if name not in first]
    return f"::: {module}\n    options:\n      members: {rest}\n"


def _listed(module: str) -> list[str]:
    """`__all__` of a module."""
    for part in _parsed(module).body:
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "__all__":
            return list(ast.literal_eval(part.value))
    return []


def _parsed(module: str) -> ast.Module:
    path = SOURCE.joinpath(*module.split("."))
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))


def _summary(module: str) -> str:
    text = ast.get_docstring(_parsed(module)) or ""
    return " ".join(text.partition("\n\n")[0].split()).replace("|", "\\|")


def _benchmarks() -> str:
    """The first page of the benchmarks: every table with its title."""
    lines = ["# Benchmarks", "", "What was measured, with the commands that measure it again.", ""]
    lines += ["- [How fast, and how exact](speed.md): the most important numbers, and how to measure yours"]
    for name in BENCHMARKS:
        title = (ROOT / "benchmarks" / f"{name}.md").read_text("utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}](project/benchmarks/{name}.md)")
    return "\n".join(lines) + "\n"
