"""Observations of chosen requests while a serving engine computes them: which, of which layers, and what is kept.

Nothing here imports an engine: `limelight.integrations.vllm_watch` calls this from vLLM's workers.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..forms.observations import Observations, Observe
from ..tensors.shapes import ArgumentError, describe, wrong

#: The field of a request, in vLLM's ``vllm_xargs``, that says what to observe of it.
FIELD = "limelight_observe"
#: The environment variable that says what to observe of every request.
VARIABLE = "LIMELIGHT_OBSERVE"
#: The value of `VARIABLE` under which only requests with `FIELD` are observed.
ON_REQUEST = "requests"
MAX_TOP = 64
MAX_DONE = 1000  # finished requests that are kept, however small
MAX_PARTS = 64
_FLAGS = ("entropy", "max_weight", "received")
_EXAMPLE = 'Write for example "entropy,received,top=8; layers=0-3,7".'


@dataclass(frozen=True)
class Wanted:
    """What to observe of a request: the fields, and the layers.

    >>> Wanted.parse("entropy,top=8; layers=0-3,7")
    Wanted(fields=('entropy',), top=8, layers=((0, 3), (7, 7)))

    Attributes:
        fields: of ``entropy``, ``max_weight`` and ``received``, as `Observe` defines them.
        top: how many of the largest weights of each query to keep, with their keys; 0 for none, at most `MAX_TOP`.
        layers: first and last of each range of layers; ``None`` for all.
    """

    fields: tuple[str, ...] = ()
    top: int = 0
    layers: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def parse(cls, text: object, name: str = VARIABLE) -> Wanted:
        """What ``text`` says: fields with commas between them and, behind a semicolon, ``layers=`` with ranges.

        Raises:
            ArgumentError: it says something else; ``name`` is what the message calls it.
        """
        if not isinstance(text, str):
            raise wrong(name, "must be a text", f"it is {describe(text)}", _EXAMPLE)
        first, *rest = (part.strip() for part in text.split(";"))
        fields, top = [], 0
        for word in (word.strip() for word in first.split(",")):
            if word in _FLAGS:
                fields.append(word)
            elif re.fullmatch(r"top=\d{1,9}", word) and 1 <= int(word[4:]) <= MAX_TOP:
                top = int(word[4:])
            else:
                rule = f"must name fields of {', '.join(_FLAGS)} and top=1 to top={MAX_TOP}"
                requests = f"; {ON_REQUEST} alone leaves it to each request" if name == VARIABLE else ""
                raise wrong(name, rule + requests, f"it has {describe(word)}", _EXAMPLE)
        layers = None
        for part in rest:
            if layers is not None or not re.fullmatch(r"layers=\d{1,6}(-\d{1,6})?(\s*,\s*\d{1,6}(-\d{1,6})?)*", part):
                raise wrong(
                    name, "must have ranges of layers behind its semicolon", f"it has {describe(part)}", _EXAMPLE
                )
            ends = [[int(end) for end in piece.split("-")] for piece in part.removeprefix("layers=").split(",")]
            layers = tuple((found[0], found[-1]) for found in ends)
            for low, high in layers:
                if low > high:
                    raise wrong(name, "must have rising ranges", f"it has {low}-{high}", f"Write {high}-{low}.")
        return cls(tuple(dict.fromkeys(fields)), top, layers)

    def includes(self, layer: int) -> bool:
        """Whether the layer of this number is observed."""
        return self.layers is None or any(first <= layer <= last for first, last in self.layers)

    def observe(self) -> Observe:
        """The observations of a call."""
        return Observe(top=self.top, **dict.fromkeys(self.fields, True))  # type: ignore[arg-type]


@dataclass
class LayerRecord:
    """What was observed of one layer of one request, by its queries ``first`` to ``end - 1``.

    Attributes:
        first: position of the first query observed.
        end: position behind the last query observed.
        parts: for each field of queries, ``(H, n, ...)`` tensors of consecutive queries.
        received: ``(H, Lk)``, the weight that each key received of the queries observed.
    """

    first: int = 0
    end: int = 0
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    received: Tensor | None = None

    def add(self, start: int, seen: Mapping[str, Tensor]) -> int:
        """Add the observations of the queries from the position ``start`` on; the bytes that they take."""
        queries, size = 0, 0
        for name, tensor in seen.items():
            if name == "received":
                whole = tensor.clone()
                if self.received is not None:
                    whole[:, : self.received.shape[1]] += self.received
                    size -= self.received.nbytes
                self.received = whole
            else:
                tensor = tensor.to(torch.int32) if name == "top_keys" else tensor.clone()
                parts = self.parts.setdefault(name, [])
                parts.append(tensor)
                if len(parts) == MAX_PARTS:  # a tensor of its own for each token would be mostly overhead
                    parts[:] = [torch.cat(parts, 1)]
                queries = tensor.shape[1]
            size += tensor.nbytes
        self.end = start + queries
        return size

    def numbers(self) -> dict[str, Any]:
        """Lists for JSON, rounded to five decimal places: of heads, of queries or keys, of numbers (`_listed`)."""
        fields = {name: torch.cat(parts, 1) for name, parts in self.parts.items()}
        if self.received is not None:
            fields["received"] = self.received
        lists = {name: _listed(value) for name, value in fields.items()}
        if "top_keys" in fields:
            lists["top_keys"] = fields["top_keys"].tolist()
        return {"first": self.first, "end": self.end, **lists}


@dataclass(eq=False)
class Record:
    """What was observed of one request.

    Attributes:
        name: the engine's name of the request.
        prompt: its token ids.
        cached: tokens whose keys came from the prefix cache when the request began.
        wanted: what is observed from now on; ``None`` if nothing.
        tokens: the token ids that were generated.
        finished: whether the request has ended.
        layers: observations, by the names of the layers.
        notes: sentences on what is missing, and why.
    """

    name: str
    prompt: tuple[int, ...]
    cached: int
    wanted: Wanted | None
    tokens: tuple[int, ...] = ()
    finished: bool = False
    layers: dict[str, LayerRecord] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        if self.cached:
            self.note(
                f"The first {self.cached} tokens came from the prefix cache: they were not computed, so their queries "
                "were not observed, and `received` is without their weights."
            )

    def note(self, sentence: str) -> None:
        """Add a sentence, unless it is there already."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def add(self, layer: str, start: int, seen: Mapping[str, Tensor]) -> None:
        """Add what was observed of a layer, of the queries from the position ``start`` on.

        Positions that do not continue those before, as of a request that was preempted, begin the layer anew.
        """
        found = self.layers.get(layer)
        if found is None or found.end != start:
            if found is not None:
                self.note(
                    "The request was preempted, and its keys were computed again: what was observed begins with the "
                    "first query that was computed again."
                )
                self.size -= sum(part.nbytes for parts in found.parts.values() for part in parts)
                self.size -= 0 if found.received is None else found.received.nbytes
            found = self.layers[layer] = LayerRecord(start, start)
        self.size += found.add(start, seen)

    def stop(self, limit: int) -> None:
        """Observe no more of this request, since all of them together take more than ``limit`` bytes."""
        self.wanted = None
        self.note(
            f"Observations took more than {limit / 2**20:g} MiB (LIMELIGHT_OBSERVE_MIB), so the later queries of this "
            "request were left out. Choose fewer layers or fields."
        )

    def data(self) -> dict[str, Any]:
        """The record as JSON has it."""
        return {
            "request": self.name,
            "finished": self.finished,
            "prompt": list(self.prompt),
            "tokens": list(self.tokens),
            "cached": self.cached,
            "notes": self.notes,
            "layers": {name: layer.numbers() for name, layer in self.layers.items()},
        }


class Records:
    """The records of one worker: those of running requests, and the last ones of finished requests.

    Args:
        default: what to observe of a request that does not say; ``None`` for nothing.
        limit: bytes that the observations of all running requests, and those of all finished ones, may take.
        file: where each finished request adds a line of JSON; ``None`` for nowhere.
        file_limit: bytes at which the file is renamed to ``file.1``, in the place of an earlier one, and begun anew.
    """

    def __init__(
        self, default: Wanted | None, limit: int = 2**26, file: str | None = None, file_limit: int = 2**30
    ) -> None:
        self.default, self.limit, self.file, self.file_limit = default, limit, file, file_limit
        self.running: dict[str, Record] = {}
        self.done: dict[str, Record] = {}
        #: The requests of the current batch, in the order of its rows; the engine sets it.
        self.names: Callable[[], Sequence[str]] = tuple
        #: The token ids that a request has generated; the engine sets it.
        self.generated: Callable[[str], Sequence[int]] = lambda name: ()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], rank: int = 0) -> Records | None:
        """Records as ``LIMELIGHT_OBSERVE`` and its companions set them; ``None`` where it is not set.

        Raises:
            ArgumentError: a variable is not what it should be.
        """
        text = environment.get(VARIABLE, "").strip()
        if not text:
            return None
        file = environment.get("LIMELIGHT_OBSERVE_FILE") or None
        if file is not None and not os.path.isdir(os.path.dirname(os.path.abspath(file))):
            got, way_out = f"it is {describe(file)}", "Make the folder, or name another file."
            raise wrong("LIMELIGHT_OBSERVE_FILE", "must lie in a folder that exists", got, way_out)
        return cls(
            None if text == ON_REQUEST else Wanted.parse(text),
            _mebibytes(environment, "LIMELIGHT_OBSERVE_MIB", 64),
            file if file is None or rank == 0 else f"{file}.rank{rank}",
            _mebibytes(environment, "LIMELIGHT_OBSERVE_FILE_MIB", 1024),
        )

    def begin(self, name: str, prompt: Iterable[int], cached: int, asked: object = None) -> None:
        """A request begins; ``asked`` is the value of its `FIELD`."""
        error = None
        try:
            wanted = self.default if asked is None else Wanted.parse(asked, FIELD)
        except ArgumentError as wrong_text:
            wanted, error = None, str(wrong_text)
        if wanted is not None or error is not None:
            self.running[name] = record = Record(name, tuple(prompt), cached, wanted)
            if error is not None:
                record.note(error)

    def finish(self, name: str) -> None:
        """A request has ended, or was aborted."""
        record = self.running.pop(name, None)
        if record is None:
            return
        record.tokens, record.finished = tuple(self.generated(name)), True
        if record.wanted is not None and record.wanted.layers is not None and not record.layers:
            record.note("No layer was observed: those that were chosen are none of the model's, or not observed.")
        self.done[name] = record
        while len(self.done) > MAX_DONE or (len(self.done) > 1 and self._size(self.done) > self.limit):
            del self.done[next(iter(self.done))]
        if self.file is not None:
            self._write(record)

    @staticmethod
    def _size(records: Mapping[str, Record]) -> int:
        return sum(record.size for record in records.values())

    def close(self) -> None:
        """End all requests: of the last ones, an engine that stops does not say that they have ended."""
        for name in list(self.running):
            self.finish(name)

    def _write(self, record: Record) -> None:
        """Append a line in one write, so that a reader never finds a part of it that another one follows."""
        assert self.file is not None
        line = (json.dumps(record.data(), separators=(",", ":")) + "\n").encode()
        try:
            if os.path.exists(self.file) and os.path.getsize(self.file) + len(line) > self.file_limit:
                os.replace(self.file, f"{self.file}.1")
            handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(handle, line)
            finally:
                os.close(handle)
        except OSError as error:  # a full disk must not end the server
            record.note(f"The line could not be written: {error}")

    def chosen(self, layer: str, rows: int) -> dict[int, Record]:
        """The rows of a batch of ``rows`` texts whose requests are observed in the layer, with their records."""
        if not self.running:
            return {}
        wanted = [record for record in self.running.values() if record.wanted is not None]
        if wanted and self._size(self.running) > self.limit:
            max(wanted, key=lambda record: record.size).stop(self.limit)
        names, number = self.names(), number_of(layer)
        found = {
            row: record
            for row, name in enumerate(names[:rows])
            if (record := self.running.get(name)) is not None
            and record.wanted is not None
            and record.wanted.includes(number)
        }
        if found and len(names) != rows:
            for record in found.values():
                record.note(f"{layer} was not observed: it computes its texts in pieces.")
            return {}
        return found

    def find(self, name: str) -> dict[str, Any] | None:
        """The record of a request, by the engine's name or that of the answer, of which it is the beginning."""
        for known, record in [*self.running.items(), *self.done.items()]:
            # "0_cmpl-abc-0-1f2e" is the first of several answers to "cmpl-abc".
            if name == known or re.sub(r"^\d+_", "", known).startswith(f"{name}-"):
                if not record.finished:
                    record.tokens = tuple(self.generated(known))
                return record.data()
        return None

    def list(self) -> list[dict[str, Any]]:
        """Name, lengths and state of each record, the oldest first."""
        return [
            {
                "request": record.name,
                "finished": record.finished,
                "prompt": len(record.prompt),
                "tokens": len(record.tokens),
                "layers": len(record.layers),
                "bytes": record.size,
            }
            for records in (self.done, self.running)
            for record in records.values()
        ]


def number_of(layer: str) -> int:
    """The number in a layer's name: of ``"model.layers.3.self_attn.attn"`` it is 3."""
    found = re.search(r"\.(\d+)\.", f".{layer}.")
    return int(found[1]) if found else 0


def split(seen: Observations, queries: Sequence[int], keys: Sequence[int]) -> list[dict[str, Tensor]]:
    """The observations of packed texts one by one, ``(H, n, ...)``, by the ``queries`` and ``keys`` of each."""
    fields = {name: tensor[0] for name, tensor in seen.seen().items() if name != "received_by"}
    cut = {
        name: torch.split(tensor, list(keys if name == "received" else queries), 1) for name, tensor in fields.items()
    }
    return [{name: parts[text] for name, parts in cut.items()} for text in range(len(queries))]


def joined(parts: Sequence[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """One record from those of all workers: with tensor parallelism each has some of the heads, in their order."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    whole = {**found[0], "layers": {}, "notes": list(dict.fromkeys(note for part in found for note in part["notes"]))}
    for part in found:
        for name, layer in part["layers"].items():
            before = whole["layers"].setdefault(name, {})
            whole["layers"][name] = {
                key: before.get(key, []) + value if isinstance(value, list) else value for key, value in layer.items()
            }
    return whole


def _listed(tensor: Tensor) -> Any:
    """The numbers of a tensor as nested lists, rounded; ``None`` for those that are not finite, which JSON lacks."""
    numbers = tensor.double().cpu().numpy().round(5)
    if not (finite := np.isfinite(numbers)).all():
        numbers = numbers.astype(object)
        numbers[~finite] = None
    return numbers.tolist()


def _mebibytes(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not re.fullmatch(r"\d{1,7}", text) or int(text) == 0:
        raise wrong(name, "must be a whole number of MiB, 1 or more", f"it is {describe(text)}", f"Use {default}.")
    return int(text) * 2**20
