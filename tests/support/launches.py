"""Launches of GPU kernels, logged: what a plan repeats is compared with what the code launches as it is written."""

import torch

from limelight.backends.gpu import plans


class Compiled:
    """In the place of a compiled kernel: logs the addresses and numbers with which it is launched."""

    function, packed_metadata = "function", "metadata"

    def __init__(self, log, kernel, arguments, settings):
        self.log, self.kernel, self.settings = log, kernel, settings
        self.first = self.compiled_for(arguments)

    def run(self, x, y, z, stream, function, metadata, _, enter, leave, *arguments):
        assert (stream, function, metadata, enter, leave) == (7, "function", "metadata", None, None)
        names = self.kernel.arg_names[len(self.first) :]
        assert list(arguments[len(self.first) :]) == [self.settings[name] for name in names]
        assert self.compiled_for(arguments[: len(self.first)], self.first) == self.first
        self.log.append((self.kernel, (x, y, z), arguments[: len(self.first)], self.settings))

    def compiled_for(self, arguments, first=None):
        return [compiled_for(*each) for each in zip(arguments, first or [None] * len(arguments), strict=True)]


def compiled_for(argument, first):
    """For which argument Triton has compiled a kernel: of a tensor the alignment, and of an integer what it is
    specialized for; addresses stand in the places of those of the ``first`` launch.
    """
    if isinstance(argument, torch.Tensor):
        return "address", argument.data_ptr() % 16 == 0
    if isinstance(argument, tuple):
        return tuple(compiled_for(part, first and first[n]) for n, part in enumerate(argument))
    if hasattr(argument, "base"):
        return "descriptor", argument.base.data_ptr() % 16 == 0
    if isinstance(first, tuple) and first[:1] == ("address",):
        return "address", argument % 16 == 0
    if type(argument) is not int:
        return argument
    return abs(argument) >= 2**31, argument == 1, argument % 16 == 0


class Same:
    """Compares two logs: equal but for the addresses of memory that a call allocates, which correspond."""

    def __init__(self, given):
        self.given, self.of = {x.data_ptr() for x in given}, {}

    def address(self, written, planned):
        planned = planned if isinstance(planned, int) else planned.data_ptr()
        if written in self.given or planned in self.given:
            assert written == planned
        elif written != planned:  # equal where it is a table of the library
            assert self.of.setdefault(written, planned) == planned
            assert list(self.of.values()).count(planned) == 1

    def argument(self, written, planned):
        if isinstance(written, torch.Tensor):
            self.address(written.data_ptr(), planned)
        elif isinstance(written, tuple):
            assert len(written) == len(planned)
            for a, b in zip(written, planned, strict=True):
                self.argument(a, b)
        elif hasattr(written, "base"):
            self.address(written.base.data_ptr(), planned.base)
            assert {**written.__dict__, "base": 0} == {**planned.__dict__, "base": 0}
        else:
            assert type(written) is type(planned)
            assert written == planned

    def logs(self, written, planned):
        assert len(written) == len(planned)
        for (kernel, grid, arguments, constants), other in zip(written, planned, strict=True):
            assert (kernel, grid) == other[:2]
            assert {n: c for n, c in constants.items() if n in kernel.arg_names} == {
                n: c for n, c in other[3].items() if n in kernel.arg_names
            }
            self.argument(tuple(arguments), tuple(other[2]))


def forward(backend, call):
    result = backend.forward(call)
    return result.output, result.logsumexp


def as_written(monkeypatch, function, *arguments):
    """What a function gives, and launches, without plans."""
    with monkeypatch.context() as patch:
        patch.setattr(plans, "form", lambda *_: None)
        return function(*arguments)


def check_launches(monkeypatch, log, function, backend, call):
    """A call launches the same, and returns the same, with plans and without."""
    log.clear()
    expected = as_written(monkeypatch, function, backend, call)
    written = log.copy()
    log.clear()
    found = function(backend, call)
    same = Same([call.query, call.key, call.value, *call.operands])
    same.logs(written, log)
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
            if a.numel():
                same.address(a.data_ptr(), b)


def settled():
    """The plans made so far."""
    every = [plans._of_arithmetic, *plans._of_tables.values()]
    return list({id(plan): plan for kept in every for plan in kept.plans()}.values())
