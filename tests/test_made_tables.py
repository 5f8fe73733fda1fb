"""The tables of docs/ that describe the source: training keys, environment variables, options of the native build."""

import ast
import re
from pathlib import Path

import pytest
import tables

ROOT = Path(__file__).parent.parent
ROWS = re.findall(
    r"^\| `(LIMELIGHT_\w+)` \| (.*?) \| (.*?) \| .+ \|$", (ROOT / "docs/environment.md").read_text("utf-8"), re.M
)
NATIVE = (ROOT / "native/src/isa.cpp").read_text("utf-8")
CMAKE = (ROOT / "native/CMakeLists.txt").read_text("utf-8")
OPTIONS = set(re.findall(r"(?:option|set)\((LIMELIGHT_\w+) .*(?:ON|OFF|CACHE STRING .*)\)", CMAKE))


@pytest.mark.parametrize("page", tables.TABLES)
def test_tables_are_those_of_the_source(page):
    path = tables.DOCS / page
    assert path.read_text("utf-8") == tables.filled(path), "python docs/tables.py"


def read_variables():
    """Every variable that Python code names, with the default beside it (`None` where there is none)."""
    found = {}
    for path in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        text = path.read_text("utf-8")
        parts = list(ast.walk(ast.parse(text))) if "LIMELIGHT_" in text else []
        for part in parts:
            if isinstance(part, ast.Constant) and is_variable(part.value):
                found.setdefault(part.value, None)
        for call in parts:
            if isinstance(call, ast.Call) and ast.unparse(call.func).rpartition(".")[2] in ("get", "_mebibytes"):
                match [part.value for part in call.args if isinstance(part, ast.Constant)]:
                    case [name, default] if is_variable(name):
                        found[name] = str(default) or None
    return found


def is_variable(value):
    return isinstance(value, str) and re.fullmatch(r"LIMELIGHT_[A-Z_]+", value) is not None


def test_every_environment_variable_has_its_row_and_default():
    variables = read_variables() | dict.fromkeys(re.findall(r'getenv\("(LIMELIGHT_\w+)"\)', NATIVE))
    described = {name: default for name, _, default in ROWS}
    assert set(variables) == set(described) - OPTIONS
    for name, default in variables.items():
        if default is not None:
            assert described[name] == f"`{default}`", name
    assert variables["LIMELIGHT_KEEP_MIB"] is not None  # a default is found at all


def test_every_instruction_set_is_a_value_of_its_variable():
    listed = set(re.findall(r'\{"(\w+)", ', NATIVE))
    values = next(values for name, values, _ in ROWS if name == "LIMELIGHT_ISA")
    assert listed
    assert set(re.findall(r"`(\w+)`", values)) == listed


def test_every_option_of_the_native_build_has_its_row():
    assert OPTIONS
    assert {name for name, _, _ in ROWS} >= OPTIONS
