"""The order of the parts, read from the imports of every module, and the size of files and functions.

An import goes to the same part or to one on a floor below, and what a package holds has an order. Imports inside
functions and under ``TYPE_CHECKING`` count. Exceptions stand in the tables at the top, with their reasons; one that is
not needed fails.
"""

import ast
import importlib
import inspect
import itertools
import re
from pathlib import Path

import pytest

import limelight

ROOT = Path(limelight.__file__).parent

#: From the lowest to the highest. A row may import every row above it in this table, and no other; parts that stand in
#: one row do not import each other.
FLOORS = (
    ("_interrupted", "_version", "tensors"),
    ("forms",),
    ("backends",),
    ("operator",),
    ("fused",),
    ("text",),
    ("formats",),
    ("outputs",),
    ("nn",),
    ("models",),
    ("generation",),
    ("pretrained",),
    ("checkpoints",),
    ("distributed",),
    ("training", "compat", "benchmark"),
    ("integrations",),
    ("microscope",),
    ("cli",),
    ("__init__", "__main__"),
)

#: Imports within a part that close a circle, from a module to a module, and why they may stay.
FACADES = {
    ("forms.patterns.base", "forms.lowering"): "the two-line method `Pattern.pairs`",
    ("forms.patterns.base", "forms.drawing"): "the two-line method `Pattern.draw`",
}

MAX_FILE, MAX_FUNCTION = 400, 60
#: Longer functions, and why.
LONG_FUNCTIONS = dict.fromkeys(
    (
        "backends.gpu.hopper.kernels.backward._owner",
        "backends.gpu.hopper.kernels.backward._producer",
        "backends.gpu.hopper.kernels.backward._step",
        "backends.gpu.hopper.kernels.forward._consumer",
        "backends.gpu.kernels.backward.key.key_gradient",
        "backends.gpu.kernels.columns.column_sums",
        "backends.gpu.kernels.forward.forward",
    ),
    "a GPU kernel, whose values stay in registers from its first line to its last",
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def imported(module):
    """The modules of Limelight that a module names in its imports."""
    package = ["limelight", *module.split(".")]
    if MODULES[module].name != "__init__.py" or module == "__init__":
        package.pop()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names = [(base, alias.name) for alias in node.names]
        else:
            continue
        for base, name in names:
            if base.split(".")[0] != "limelight":
                continue
            base = base.removeprefix("limelight").removeprefix(".")
            inner = f"{base}.{name}".removeprefix(".")
            yield inner if inner in MODULES else base or "__init__"


IMPORTS = {module: set(imported(module)) - {module} for module in MODULES}
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def part_of(module):
    return module.split(".")[0]


def test_every_part_has_a_floor():
    assert {part_of(module) for module in MODULES} == set(FLOOR)


def test_imports_go_downwards():
    against = {
        (module, target)
        for module, targets in IMPORTS.items()
        for target in targets
        if part_of(target) != part_of(module) and FLOOR[part_of(target)] >= FLOOR[part_of(module)]
    }
    assert against == set()


def test_the_design_shows_the_same_order():
    text = (Path(__file__).parents[1] / "DESIGN.md").read_text(encoding="utf-8")
    table = text.split("| package | contents |")[1].split("\n\n")[0].splitlines()[2:]
    shown = [set(re.findall(r"`(\w+)`", row.split("|")[1])) for row in table]
    named = [{part for part in parts if not part.startswith("_")} for parts in reversed(FLOORS)]
    assert shown == [parts for parts in named if parts]


def test_kinds_of_backends_do_not_import_each_other():
    kinds = {"native", "gpu", "reference"}
    for module, targets in IMPORTS.items():
        own = module.split(".")[1:2] if module.startswith("backends.") else []
        if own and own[0] in kinds:
            others = {target.split(".")[1] for target in targets if target.startswith("backends.")} & kinds
            assert others <= {own[0]}, module


def circles(graph):
    """The strongly connected sets of more than one module or package (Tarjan)."""
    index, low, stack, found, numbers = {}, {}, [], [], itertools.count()

    def visit(module):
        index[module] = low[module] = next(numbers)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
            if target in stack:
                low[module] = min(low[module], low[target])
        if low[module] == index[module]:
            members = set()
            while module not in members:
                members.add(stack.pop())
            if len(members) > 1:
                found.append(frozenset(members))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return set(found)


#: What modules import, without the exceptions.
ORDERLY = {module: {target for target in IMPORTS[module] if (module, target) not in FACADES} for module in MODULES}


def test_no_modules_import_each_other():
    assert circles(ORDERLY) == set()


PACKAGES = sorted(name for name, path in MODULES.items() if path.name == "__init__.py" and name != "__init__")


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_holds_has_an_order(package):
    """Its modules and the packages in it, each package as a whole, form no circle."""
    depth = package.count(".") + 2
    inside = {name: ".".join(name.split(".")[:depth]) for name in MODULES if name.startswith(f"{package}.")}
    graph = {member: set() for member in inside.values()}
    for module, member in inside.items():
        graph[member] |= {inside[target] for target in ORDERLY[module] if target in inside} - {member}
    assert circles(graph) == set()


def test_every_exception_is_needed():
    for (module, target), reason in FACADES.items():
        assert target in IMPORTS[module], (module, target, reason)


def lengths_of_functions():
    for module, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{module}.{node.name}", length(node)


def length(function):
    """Lines of a function from its first statement on, its documentation left out."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_files_are_short():
    long = {module for module, path in MODULES.items() if len(path.read_text().splitlines()) > MAX_FILE}
    assert long == set()


def test_functions_are_short():
    assert {name for name, lines in lengths_of_functions() if lines > MAX_FUNCTION} == set(LONG_FUNCTIONS)


def test_calls_are_never_written_to():
    """`Call` is frozen for type checkers alone, which do not see through `Any`."""
    written = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if (isinstance(node.value, ast.Name) and node.value.id == "call")
        or (isinstance(node.value, ast.Attribute) and node.value.attr == "call")
    ]
    assert written == []


#: Packages whose optional libraries may be missing, and kernels that a compiler reads.
UNREAD = (
    "integrations.transformers",
    "integrations.vllm",
    "training",
    "cli",
    "backends.gpu.kernels",
    "backends.gpu.hopper",
)


@pytest.mark.parametrize("part", sorted(set(FLOOR) - {"__init__", "__main__"}))
def test_everything_public_is_documented(part):
    """Here or, for an override, in the class that it comes from."""
    without = []
    for module in MODULES:
        if part_of(module) != part or module.startswith(UNREAD):
            continue
        loaded = importlib.import_module(f"limelight.{module}")
        for name, value in vars(loaded).items():
            if name.startswith("_") or getattr(value, "__module__", None) != loaded.__name__:
                continue
            if inspect.isfunction(value):
                without += [] if inspect.getdoc(value) else [f"{module}.{name}"]
            elif inspect.isclass(value):
                without += [
                    f"{module}.{name}.{inner}"
                    for inner, method in vars(value).items()
                    if not inner.startswith("_")
                    and (inspect.isfunction(method) or isinstance(method, (property, staticmethod, classmethod)))
                    and not inspect.getdoc(getattr(value, inner))
                ]
    assert without == []
