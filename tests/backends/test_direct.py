"""Launches through the launcher's C function: the driver is given what Triton's launcher would give it."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest

from limelight.backends.gpu import compatibility, direct, machine
from limelight.backends.gpu.direct import Slot, Varying
from limelight.backends.gpu.launching import Address

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)

triton = pytest.importorskip("triton")

META = {"swizzle": 3, "elem_size": 2, "elem_type": 8, "block_size": [1, 1, 64, 32], "fp4_padded": False}
SIGNATURE = {
    "query": "*bf16",
    "some": ("*fp32", ("constexpr", "i32"), "*fp32"),
    "described": "tensordesc<bf16[1, 1, 64, 32],NVMMA>",
    "key": "*bf16",
    "strides": ("i32", "i64", "constexpr"),
    "scale": "fp32",
    "none": "constexpr",
    "last": "*i32",
}


class Kind(NamedTuple):
    """In the place of Triton's annotation of an argument."""

    nested_tuple: list
    type: str


class Described(SimpleNamespace):
    shape, strides, padding, round_f32_to_tf32 = (2, 4, 70, 32), (8960, 2240, 32, 1), "zero", False


class Driver:
    """A driver whose launches are logged, with the parameters that the C function takes from its arguments."""

    def __init__(self):
        self.log, self.utils = [], self

    def launch(self, *arguments):
        *others, kinds, signature, nested = arguments
        flat = list(self.flattened(nested, kinds))
        assert len(flat) == len(signature)
        self.log.append((*others, flat))

    def flattened(self, arguments, kinds):
        for argument, kind in zip(arguments, kinds, strict=True):
            if kind.type == "tuple":
                yield from self.flattened(argument, kind.nested_tuple)
            elif kind.type == "kernel":
                yield argument

    def build_signature_metadata(self, signature):
        return bytes(len(signature))

    def fill_tma_descriptor_tiled(self, address, *how):
        return "map", address, *map(str, how)


@pytest.fixture
def driver(monkeypatch):
    from triton.backends.nvidia import driver as nvidia

    found = Driver()
    monkeypatch.setattr(triton.runtime, "driver", SimpleNamespace(active=found))
    for name, value in (("PyKernelArg", Kind), ("ARG_KERNEL", "kernel"), ("ARG_TUPLE", "tuple"), ("ARG_CONSTEXPR", "")):
        monkeypatch.setattr(nvidia, name, value)
    return found


def compiled(**change):
    """A compiled kernel, without the kernel."""
    from triton.backends.nvidia.driver import CudaLauncher

    source = SimpleNamespace(signature=SIGNATURE, fn=SimpleNamespace(arg_names=list(SIGNATURE)))
    of_scratch = {f"{kind}_scratch_{what}": 0 for kind in ("global", "profile") for what in ("size", "align")}
    given = {"tensordesc_meta": [META], "launch_cooperative_grid": False, "launch_pdl": False, "num_ctas": 1}
    metadata = SimpleNamespace(**of_scratch | given | change)
    return SimpleNamespace(
        run=CudaLauncher(source, metadata), src=source, metadata=metadata, function=11, packed_metadata=(4, 1, 0)
    )


def arguments(address, number=lambda what, n, value: value):
    """Those of a launch; ``address``: of the tensor of a number, ``number``: of the integers that change."""
    strides = tuple(number("strides", n, value) for n, value in enumerate((640, 64, 1)))
    described = Described(base=address(1) if type(address(1)) is Slot else Address(address(1)))
    return [address(0), (address(2), (None, 7), 4096), described, address(3), strides, 0.5, None, address(0)]


needs_launcher = pytest.mark.skipif(compatibility.version() != direct.VERSION, reason="Triton's launcher is another")


@needs_launcher
def test_flat_launches_are_those_of_the_launcher(driver):
    kernel = compiled()
    launch = direct.flat(kernel, (3, 2, 1), arguments(Slot, Varying))
    addresses = [2**40 + 64 * n for n in range(4)]
    for changed in ((640, 64, 1), (1280, 2**33, 1)):
        bound = launch.bound({"strides": changed})
        bound(9, addresses)
        nested = arguments(addresses.__getitem__, lambda what, n, value, changed=changed: changed[n])
        kernel.run(3, 2, 1, 9, 11, (4, 1, 0), None, None, None, *nested)
    ours, theirs = driver.log[::2], driver.log[1::2]
    assert ours == theirs
    assert [len(launched[-1]) for launched in ours] == [18, 18]


@needs_launcher
@pytest.mark.parametrize("change", [{"global_scratch_size": 8}, {"profile_scratch_size": 8}, {"tensordesc_meta": None}])
def test_other_launches_are_left_to_the_launcher(driver, change):
    assert direct.flat(compiled(**change), (1, 1, 1), arguments(Slot, Varying)) is None


def test_launchers_of_other_versions_are_not_taken_apart(monkeypatch):
    monkeypatch.setattr(compatibility, "version", lambda: (3, 8))
    kernel = SimpleNamespace(run=SimpleNamespace(kernel_signature=b""), src=SimpleNamespace(signature={}))
    assert direct.flat(kernel, (1, 1, 1), []) is None
