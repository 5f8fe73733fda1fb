"""Huge pages change where elements lie, and nothing else."""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from limelight.backends import huge_pages, native
from limelight.nn.cache.stores import FullStore, NewTokens

MIB = 2**20
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system has no madvise for huge pages")


@pytest.fixture(autouse=True)
def setting_read_again() -> Iterator[None]:
    huge_pages.wanted.cache_clear()
    yield
    huge_pages.wanted.cache_clear()


def huge_kib(tensor: torch.Tensor) -> int:
    """KiB of huge pages in the mapping of the system in which the first whole huge page of a tensor lies."""
    address, inside = -(-tensor.data_ptr() // (2 * MIB)) * 2 * MIB, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if found:
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError("the tensor is in no mapping")


@linux
def test_elements_stay_as_they_are_while_they_are_moved() -> None:
    tensor = torch.arange(4 * MIB, dtype=torch.int32)  # 16 MiB
    before = tensor.clone()
    moved = huge_pages.use(tensor, seconds=30)
    assert torch.equal(tensor, before)
    assert moved % (2 * MIB) == 0
    assert moved <= tensor.nbytes
    if moved:  # the system may have no memory in one piece
        assert huge_kib(tensor) >= moved // 1024


@linux
@pytest.mark.skipif(not native.available(), reason="the native library asks the system")
def test_a_refusal_is_not_taken_for_memory_that_was_not_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    with mmap.mmap(-1, 16 * MIB) as memory:
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert native.use_huge_pages(address, 16 * MIB, 1) is None  # nothing lies there any more
    monkeypatch.setattr(huge_pages, "wanted", lambda: True)
    monkeypatch.setattr(native, "use_huge_pages", lambda *_: None)
    assert huge_pages.use(torch.ones(4 * MIB), seconds=1) is None


@linux
def test_all_of_the_storage_of_a_view_is_meant() -> None:
    tensor = torch.ones(8 * MIB)
    view = tensor.view(8, -1)[3:4]
    assert huge_pages.use(view, seconds=30) in (0, huge_pages.use(tensor, seconds=30))
    assert tensor.min() == tensor.max() == 1


def test_no_time_moves_nothing() -> None:
    assert huge_pages.use(torch.ones(4 * MIB)) == 0


@pytest.mark.parametrize("tensor", [torch.ones(1000), torch.empty(8 * MIB, device="meta"), torch.ones(0)])
def test_small_memory_and_other_devices_are_left_alone(tensor: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "use_huge_pages", lambda *_: pytest.fail("it was called"))
    assert huge_pages.use(tensor, seconds=1) == 0
    assert huge_pages.zeros(tensor, (3, 5)).shape == (3, 5)


def test_the_environment_switches_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_HUGE_PAGES", "0")
    monkeypatch.setattr(native, "use_huge_pages", lambda *_: pytest.fail("it was called"))
    assert not huge_pages.wanted()
    assert huge_pages.use(torch.ones(4 * MIB), seconds=1) == 0


def test_other_values_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_HUGE_PAGES", "yes")
    with pytest.raises(ValueError, match="LIMELIGHT_HUGE_PAGES must be 0 or 1; it is 'yes'"):
        huge_pages.wanted()


def test_a_system_set_to_never_is_obeyed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "_SETTING", setting)
    assert not huge_pages.wanted()
    setting.write_text("always [madvise] never\n")
    huge_pages.wanted.cache_clear()
    assert huge_pages.wanted()
    setting.unlink()
    huge_pages.wanted.cache_clear()
    assert not huge_pages.wanted()  # a system without them


def test_caches_ask_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(huge_pages, "use", lambda tensor, seconds=0: asked.append(tensor.nbytes) or 0)
    store = FullStore()
    key = torch.ones(1, 2, 8, 16)
    store.extend(NewTokens(None, None, 0, 8, torch.arange(8)[None], None), key, key)
    assert len(asked) == 2
    assert all(size > 0 for size in asked)
