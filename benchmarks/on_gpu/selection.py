"""The GPU backends, and which calls this process makes."""

from __future__ import annotations

import re
from typing import Any

from limelight.backends import BACKENDS
from limelight.backends.gpu.hopper import flash3_float8

GPU_BACKENDS = [b.NAME for b in BACKENDS if b.NAME.startswith("flash")]


# It rounds to 8 bits, so it is compared with the best that rounding allows, and has a forward pass only.
FLOAT8 = flash3_float8.NAME


def by_name(backend: str) -> Any:
    return next(b for b in BACKENDS if backend == b.NAME)


class Selection:
    """The calls of this process: those whose names match a pattern, and of these every n-th."""

    def __init__(self, pattern: str, shard: int, shards: int) -> None:
        self.pattern, self.shard, self.shards = re.compile(pattern), shard, shards
        self.seen = 0

    def __call__(self, name: str) -> bool:
        if not self.pattern.search(name):
            return False
        self.seen += 1
        return (self.seen - 1) % self.shards == self.shard

    @property
    def everything(self) -> bool:
        return not self.pattern.pattern and self.shards == 1
