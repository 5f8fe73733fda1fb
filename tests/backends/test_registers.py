"""Kernels that would spill registers although a thread has not all of them are compiled with more, before a launch."""

from types import SimpleNamespace

import pytest
import torch

from limelight.backends.gpu import launching
from limelight.backends.gpu.launching import MOST_REGISTERS, Launched


class Kernel:
    """In the place of a kernel of Triton: logs how it is compiled and launched."""

    def __init__(self, registers, spilled):
        self.log, self.registers, self.spilled = [], registers, spilled

    def warmup(self, *arguments, grid, **settings):
        self.log.append(("compiled", settings.get("maxnreg")))
        return SimpleNamespace(run=print, n_regs=self.registers, n_spills=self.spilled)

    def __getitem__(self, grid):
        return lambda *arguments, **settings: self.log.append(("launched", settings.get("maxnreg")))


@pytest.fixture(autouse=True)
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(launching, "interpreted", lambda: False)
    monkeypatch.setattr(launching, "_spilling", {})


def launched(kernel, *arguments, **settings):
    Launched(kernel, (1,), arguments, settings, {}).dispatch()


@pytest.mark.parametrize(
    ("registers", "spilled", "limit"),
    [(128, 2, MOST_REGISTERS), (254, 1, MOST_REGISTERS), (128, 0, None), (255, 30, None)],
    ids=["needless", "one register left", "none spilled", "no register left"],
)
def test_only_a_kernel_that_spills_needlessly_gets_more_registers(registers, spilled, limit):
    kernel = Kernel(registers, spilled)
    for _ in range(3):
        launched(kernel, const=(64, 32), num_warps=8)
    assert kernel.log == [("compiled", None), *[("launched", limit)] * 3]


def test_each_form_of_a_kernel_is_looked_at():
    kernel = Kernel(128, 4)
    for const in ((64, 32), (32, 32), (64, 32)):
        launched(kernel, const=const)
    assert [what for what, _ in kernel.log] == ["compiled", "launched"] * 2 + ["launched"]
    for dtype in (torch.float16, torch.float32, torch.float16):
        launched(kernel, torch.zeros(1, dtype=dtype), const=(64, 32))
    assert [what for what, _ in kernel.log[5:]] == ["compiled", "launched"] * 2 + ["launched"]


@pytest.mark.parametrize("settings", [{"maxnreg": 168}, {"RESCUE": True}])
def test_a_limit_of_the_kernel_and_rescues_are_left_alone(settings):
    kernel = Kernel(128, 4)
    launched(kernel, **settings)
    assert kernel.log == [("launched", settings.get("maxnreg"))]


def test_on_rocm_no_limit_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.0")
    kernel = Kernel(128, 4)
    launched(kernel, const=1)
    assert kernel.log == [("launched", None)]


def test_the_interpreter_compiles_nothing(monkeypatch):
    monkeypatch.setattr(launching, "interpreted", lambda: True)
    kernel = Kernel(128, 4)
    launched(kernel, const=1)
    assert kernel.log == [("launched", None)]
