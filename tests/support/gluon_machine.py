"""A machine that runs Gluon kernels on the CPU: their own source, with every operation in plain PyTorch.

Partitions of a program are threads that wait for barriers as the real ones do. Bulk copies destroy what they replace
at once and write when they are waited for; products read shared memory when they are waited for. So what is overwritten
too early, or awaited too late or never, gives wrong numbers or an error and not luck. Registers and layouts are not
modelled.
"""

from __future__ import annotations

import ast
import inspect
import threading
import time
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

import limelight
from limelight.backends.gpu.hopper.tuning import LINE

HERE = Path(limelight.__file__).parent / "backends"
SOURCES = (
    "gpu/kernels/visibility.py",
    "gpu/kernels/scores.py",
    "gpu/hopper/kernels/schedule.py",
    "gpu/hopper/kernels/operands.py",
    "gpu/hopper/kernels/copies.py",
    "gpu/hopper/kernels/softmax.py",
    "gpu/hopper/kernels/forward.py",
    "gpu/hopper/kernels/rows.py",
    "gpu/hopper/kernels/backward.py",
)
PATIENCE = 20.0  # seconds until a barrier without arrivals is reported as a deadlock
COPYING = 0.0  # seconds that a copy takes
HESITATION = 0.0  # seconds that others have after an arrival


class Pointer:
    """An address, or a tensor of addresses, in the memory of a tensor."""

    def __init__(self, memory, offset):
        self.memory, self.offset = memory, offset
        self.dtype = SimpleNamespace(element_ty=memory.dtype)

    @classmethod
    def to(cls, tensor):
        memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
        return cls(memory, torch.tensor(tensor.storage_offset()))

    def __add__(self, more):
        return Pointer(self.memory, self.offset + more)


def load(at, mask=None, other=0):
    if mask is None:
        return at.memory[at.offset.long()]
    offset, mask = torch.broadcast_tensors(at.offset, mask)
    return torch.where(mask, at.memory[torch.where(mask, offset, 0).long()], torch.tensor(other).to(at.memory.dtype))


def store(at, value, mask=None):
    value = torch.as_tensor(value).to(at.memory.dtype)
    offset, value = torch.broadcast_tensors(at.offset, value)
    if mask is not None:
        offset, mask = torch.broadcast_tensors(offset, mask)
        value = value.broadcast_to(offset.shape)[mask]
        offset = offset[mask]
    at.memory[offset.long()] = value


# --- Barriers, copies and products ------------------------------------------------------------------------------------


class Barrier:
    """An mbarrier: a phase ends when all have arrived and all bytes that were expected have come."""

    def __init__(self, program):
        self.program, self.count = program, 0
        self.ended = self.bytes = 0
        self.copies = []  # that were issued, and write when they are waited for

    def init(self, count):
        self.count = self.missing = count

    def change(self, arrivals, size):
        with self.program.news:
            self.missing -= arrivals
            self.bytes += size
            assert self.missing >= 0, "more arrivals than a phase has"
            if not self.missing and not self.bytes:
                self.ended, self.missing = self.ended + 1, self.count
                self.program.news.notify_all()

    def arrive(self, count):
        barrier()
        self.change(count, 0)
        if HESITATION:
            time.sleep(HESITATION)

    def wait(self, phase):
        def passed():
            return (self.ended & 1) != int(phase) or self.program.failed

        with self.program.news:
            while not passed():
                if self.copies:
                    self.copies.pop(0)()
                else:
                    assert self.program.news.wait(PATIENCE), "the phase of a barrier never ends: a deadlock"
            assert not self.program.failed, "another partition has failed"


class Batch(list):
    def index(self, number):
        return self[int(number)]


class Buffer:
    """Shared memory, NaN (or the smallest whole number) before anybody writes."""

    def __init__(self, data):
        self.data = data

    shape = property(lambda self: list(self.data.shape))
    dtype = property(lambda self: self.data.dtype)

    def index(self, number):
        return Buffer(self.data[int(number)])

    def reshape(self, shape):
        return Buffer(self.data.view(shape))

    def permute(self, order):
        return Buffer(self.data.permute(order))

    def load(self, layout):
        return self.data.clone()


class Descriptor:
    """What `describe` makes of a tensor."""

    def __init__(self, tensor, rows, width):
        assert tensor.data_ptr() % 16 == 0
        assert all(
            s * tensor.itemsize % 16 == 0 for n, s in zip(tensor.shape, tensor.stride()[:-1], strict=False) if n > 1
        )
        self.tensor, self.rows, self.width = tensor, rows, width
        self.dtype, self.layout = tensor.dtype, None
        self.block_shape = [1, 1, rows, width]
        self.nbytes_per_cta = rows * width * tensor.itemsize


class Line(Descriptor):
    """What `describe_line` makes of a tensor."""

    def __init__(self, tensor, count):
        assert tensor.is_contiguous()
        super().__init__(tensor.view(1, 1, 1, -1), 1, count)
        self.block_shape = [count]


def copy_to_shared(descriptor, coordinates, barrier, buffer, pred=True):
    if not pred:
        return
    if isinstance(descriptor, Line):
        coordinates, buffer = [0, 0, 0, *coordinates], buffer.reshape([1, 1, 1, descriptor.width])
    b, h, first, column = (int(x) for x in coordinates)
    # From elsewhere a GPU stops with "an illegal instruction" (seen on an H200).
    assert column * descriptor.tensor.itemsize % 16 == 0, "a bulk copy begins at a multiple of 16 bytes"
    rows = descriptor.tensor[b, h, max(first, 0) : first + descriptor.rows, column : column + descriptor.width]
    assert buffer.data.data_ptr() not in here.unsynchronised, "a buffer is filled that other warps may still read"
    buffer.data.copy_(unset(buffer.data))

    def write():
        if COPYING:
            time.sleep(COPYING)
        buffer.data.view(torch.uint8).zero_()
        buffer.data[0, 0, : rows.shape[0], : rows.shape[1]] = rows
        barrier.change(0, -descriptor.nbytes_per_cta)

    with barrier.program.news:
        barrier.copies.append(write)
        barrier.program.news.notify_all()


class Product:
    """A product that was issued; its operands are read when it is waited for."""

    def __init__(self, a, b, before):
        self.a, self.b, self.before, self.value = a, b, before, None
        self.dtype = before.dtype

    def finish(self):
        a = self.a.data.clone() if isinstance(self.a, Buffer) else self.a
        before = self.before.value if isinstance(self.before, Product) else self.before
        self.value = before + a.float() @ self.b.data.float()
        here.unsynchronised |= {x.data.data_ptr() for x in (self.a, self.b) if isinstance(x, Buffer)}


class Program:
    """One program of a grid and its partitions."""

    def __init__(self, place, grid):
        self.place, self.grid = place, grid
        self.news, self.failed = threading.Condition(), []


here = threading.local()


def begin(program):
    """This thread runs a partition of a program: no product has been issued, and no buffer was read."""
    here.program, here.issued, here.unsynchronised = program, [], set()


def barrier():
    """All warps of the partition have got here: what one of them has read, all have."""
    here.unsynchronised.clear()


def warpgroup_mma(a, b, before, use_acc=True, is_async=False):
    assert is_async
    here.issued.append(Product(a, b, before if use_acc else torch.zeros_like(before)))
    return here.issued[-1]


def warpgroup_mma_wait(pending, deps):
    while len(here.issued) > pending:
        here.issued.pop(0).finish()
    values = tuple(x.value if isinstance(x, Product) else x for x in deps)
    assert all(x is not None for x in values), "a product is used that still runs"
    return values if len(values) > 1 else values[0]


def warp_specialize(partitions, warps, registers):
    program = here.program

    def run(function, args):
        begin(program)
        try:
            function(*args)
            assert not here.issued, "a product is never waited for"
        except BaseException as error:
            with program.news:
                program.failed.append(error)
                program.news.notify_all()

    threads = [threading.Thread(target=run, args=partition) for partition in partitions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if program.failed:
        raise program.failed[0]


# --- The language -----------------------------------------------------------------------------------------------------


def tensors(*values):
    return (torch.as_tensor(v) for v in values)


def where(condition, a, b):
    kind = lambda x: torch.int32 if isinstance(x, int) else torch.float32  # noqa: E731
    a, b = (x if isinstance(x, torch.Tensor) else torch.tensor(x, dtype=kind(x)) for x in (a, b))
    return torch.where(torch.as_tensor(condition), a, b)


def most(x, axis):
    return x.nan_to_num(-torch.inf, torch.inf, -torch.inf).amax(axis) if x.is_floating_point() else x.amax(axis)


def decorator(function=None, **_):
    return function if function is not None else lambda f: f


def unset(like):
    return torch.full_like(like, torch.nan if like.is_floating_point() else torch.iinfo(like.dtype).min)


def shared(dtype, shape, layout):
    return Buffer(torch.full(shape, torch.nan).to(dtype))


def pairs(dtype):
    """Two or four numbers, rounded to a dtype, in a word of 32 bits."""
    return lambda *x: torch.stack([part.to(dtype) for part in x], -1).view(torch.int32).squeeze(-1)


def below(s, place, length):
    return torch.where((place >= 0) & (place < length), s, -torch.inf)


def within(p, place, begin, end):
    return torch.where((place >= begin) & (place < end), p, 0.0)


PTX = {  # what the kernels write as instructions, by a part of the text
    "bf16x2": pairs(torch.bfloat16), "f16x2": pairs(torch.float16),
    "e4m3x2": lambda *x: pairs(torch.float8_e4m3fn)(*(part.clamp(-448.0, 448.0) for part in x)), "setp.lt.u32": below,
    "setp.ge.s32": within,
}  # fmt: skip


def exp2(x):
    power = torch.exp2(x)
    return torch.where(power < torch.finfo(torch.float32).tiny, 0.0, power)  # as ``ex2.approx.ftz.f32``


def inline_asm(text, constraints, operands, **_):
    if "%nctaid.x" in text:
        return torch.tensor(here.program.grid[0])
    return next(function for name, function in PTX.items() if name in text)(*operands) if text else operands[0]


def cast(x, dtype, bitcast):
    return x.contiguous().view(dtype)


language = SimpleNamespace(
    constexpr=lambda x: x, static_range=range, load=load, store=store, where=where,
    arange=lambda first, last, layout=None: torch.arange(first, last, dtype=torch.int32),
    full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
    convert_layout=lambda x, layout, assert_trivial=False: x, cdiv=lambda a, b: (a + b - 1) // b,
    maximum=lambda a, b: torch.fmax(*tensors(a, b)), minimum=lambda a, b: torch.fmin(*tensors(a, b)),
    max=most, min=lambda x, axis: x.amin(axis), sum=lambda x, axis: x.sum(axis), abs=torch.abs,
    exp2=exp2, log2=torch.log2, floor=torch.floor,
    fma=lambda a, b, c: (a.double() * b + c).float(),
    program_id=lambda axis: torch.tensor(here.program.place[axis]),
    num_programs=lambda axis: torch.tensor(here.program.grid[axis]),
    int16=torch.int16, int32=torch.int32, int64=torch.int64, float32=torch.float32,
    NVMMADistributedLayout=lambda *_: None, SliceLayout=lambda *_: None, DotOperandLayout=lambda *_: None,
    bfloat16=torch.bfloat16, int8=torch.int8, cast=cast, inline_asm_elementwise=inline_asm, barrier=barrier,
    join=lambda a, b: torch.stack([a, b], -1), split=lambda x: x.unbind(-1),
    allocate_shared_memory=shared, warp_specialize=warp_specialize,
)  # fmt: skip


def allocate_mbarrier(batch=None):
    return Barrier(here.program) if batch is None else Batch(Barrier(here.program) for _ in range(batch))


NAMES = {
    "triton": SimpleNamespace(jit=decorator), "tl": language, "gl": language,
    "gluon": SimpleNamespace(jit=decorator, constexpr_function=decorator),
    "mbarrier": SimpleNamespace(
        allocate_mbarrier=allocate_mbarrier, init=lambda bar, count: bar.init(count),
        wait=lambda bar, phase, pred=True: bar.wait(phase) if pred else None,
        arrive=lambda bar, count=1: bar.arrive(count),
        expect=lambda bar, size, pred=True: bar.change(1, size) if pred else None,
    ),
    "copy_to_shared": copy_to_shared, "fence_async_shared": lambda: None,
    "warpgroup_mma": warpgroup_mma, "warpgroup_mma_wait": warpgroup_mma_wait, "_LINE": LINE,
}  # fmt: skip


class Kernel:
    """A kernel that is launched as the real ones are."""

    def __init__(self, function):
        self.function = function

    def __getitem__(self, grid):
        def launch(*args, **settings):
            known = inspect.signature(self.function).parameters
            settings = {name: value for name, value in settings.items() if name in known}
            whole = grid + (1,) * (3 - len(grid))
            for place in product(*(range(n) for n in whole)):
                begin(Program(place, whole))
                self.function(*_pointers(args), **settings)
                assert not here.issued, "a product is never waited for"

        return launch


def _pointers(value):
    if isinstance(value, torch.Tensor):
        return Pointer.to(value)
    return tuple(_pointers(v) for v in value) if isinstance(value, tuple) else value


def kernels(before="", after=""):
    """The kernels of `SOURCES` by name: their files without the imports, in one namespace, with one change.

    Functions whose names begin with ``_`` belong to their files.
    """
    names = dict(NAMES)
    text = {source: (HERE / source).read_text() for source in SOURCES}
    if not any(before in words for words in text.values()):
        raise LookupError(f"no kernel has the text {before!r}")  # which no test takes for a mistake that was noticed
    for source in SOURCES:
        names = dict(names)
        tree = ast.parse(text[source].replace(before, after) if before else text[source])
        tree.body = [node for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(tree, str(HERE / source), "exec"), names)
    return names


@contextmanager
def installed(processors=3, change=("", "")):
    """Inside, `flash3` runs here, on a machine of so many multiprocessors, with a change of its source."""
    from limelight.backends.gpu import machine
    from limelight.backends.gpu.hopper import descriptors
    from limelight.backends.gpu.hopper import kernels as package

    names = kernels(*change)
    schedule = SimpleNamespace(**{name: Kernel(names[name]) for name in ("plan", "plan_keys", "bounds")})
    with ExitStack() as stack:
        for owner, name, value in (
            (package, "schedule", schedule),
            (package, "forward", SimpleNamespace(forward=Kernel(names["forward"]))),
            (package, "backward", SimpleNamespace(gradient=Kernel(names["gradient"]))),
            (descriptors, "describe", Descriptor),
            (descriptors, "describe_line", Line),
            (machine, "generation", lambda device: "hopper"),
            (machine, "processors", lambda device: processors),
        ):
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        yield
