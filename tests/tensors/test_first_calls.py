"""Importing Limelight calls PyTorch's elementary functions before several threads do (`limelight.tensors.first_calls`).

The fault that it prevents shows in the first call of one process out of ten, so the calls themselves are looked at.
"""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from limelight.tensors.first_calls import FUNCTIONS

PROGRAM = """
import sys
import torch

called = []

def watched(name):
    function = getattr(torch, name)
    def call(operand, *rest, **named):
        called.append((name, str(operand.dtype), operand.device.type))
        return function(operand, *rest, **named)
    return call

for name in sys.argv[1:]:
    setattr(torch, name, watched(name))
with torch.device("meta"):
    import limelight
assert {(name, f"torch.{dtype}", "cpu") for name in sys.argv[1:] for dtype in ("float32", "float64")} <= set(called)
"""


def test_each_function_is_called_when_limelight_is_imported():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, *FUNCTIONS], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr


def test_the_functions_are_those_that_pytorch_leaves_to_mkl():
    header = Path(torch.__file__).parent / "include/ATen/cpu/vml.h"
    if not header.is_file():
        pytest.skip("this build of PyTorch comes without its headers")
    assert set(re.findall(r"^IMPLEMENT_VML_MKL\((\w+),", header.read_text(), re.MULTILINE)) == set(FUNCTIONS)
