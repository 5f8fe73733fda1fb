"""What the assembler says of a compiled kernel, and what its machine code shows."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# Matrix products of each generation, and the asynchronous copies that feed them: a pipelined loop has both.
COUNTED = re.compile(r"\b(HGMMA|QGMMA|HMMA|UTCHMMA|UTCQMMA|LDGSTS|UTMALDG)\b")
# Waits for products of which two, one or none may still run; and exponentials.
ORDER = re.compile(r"WARPGROUP\.DEPBAR\.LE gsb0, 0x([012])|(MUFU\.EX2)")

REGISTERS = re.compile(r"Used (\d+) registers")
SPILLED = re.compile(r"(\d+) bytes spill stores")


def sum_of(pattern: re.Pattern[str], words: str) -> int:
    """The sum of the numbers that a pattern finds."""
    return sum(int(n) for n in pattern.findall(words))


def report(kernel: Any, rescue: bool) -> dict[str, Any]:
    """Registers, spills, shared memory and matrix instructions of a compiled kernel."""
    words = kernel.metadata.assembler
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder, "kernel.cubin")
        binary.write_bytes(kernel.asm["cubin"])
        code = subprocess.run([TOOLS / "nvdisasm", binary], capture_output=True, text=True, check=True).stdout
    hidden, running = 0, False
    for pending, exponential in ORDER.findall(code):
        hidden += bool(exponential and running)
        running = pending != "0" if pending else running
    overlap: dict[str, Any] = {"exponentials under a product": hidden} if hidden else {}
    if hidden and kernel.metadata.name in ("forward", "gradient"):
        overlap |= {"steps": steps(code)}
    return {
        "kernel": kernel.metadata.name,
        "rescue": rescue,
        "warps": kernel.metadata.num_warps,
        "registers": sum_of(REGISTERS, words),
        "spilled": sum_of(SPILLED, words),
        "shared": kernel.metadata.shared,
        "serialised": "serialized" in words,
        "unset": unset(code),
        "instructions": dict(sorted(Counter(COUNTED.findall(code)).items())),
    } | overlap


LINE = re.compile(r"^\s*(?:(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+([^;]*);)", re.MULTILINE)


def steps(code: str) -> list[dict[str, int]]:
    """Instructions of each loop in which a product is issued before another one has ended, and of these those that
    move parts of registers (``PRMT``)."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    for label, instruction in LINE.findall(code):
        if label:
            labels[label] = len(lines)
        else:
            lines.append(instruction)
    found = []
    for at, line in enumerate(lines):
        target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
        if target and labels[target[1]] <= at:
            loop = lines[labels[target[1]] : at + 1]
            pending = set(re.findall(r"DEPBAR\.LE gsb0, 0x(\d)", " ".join(loop)))
            # A range that stores results is no loop: it ends where a wait is repeated, behind the code.
            if len(pending) > 1 and not any("STG" in line for line in loop):
                found.append({"instructions": len(loop), "PRMT": sum("PRMT" in line for line in loop)})
    return found


INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?(\S+)\s*([^;]*);")
TWO_REGISTERS = re.compile(r"\.64\b|\.WIDE\b|\.128\b")


def unset(code: str) -> int:
    """The number of uniform registers that are read, in the order of the machine code, before they are set.

    ``ptxas`` 12.8 does so for addresses of operands of Hopper's products, and the result of the kernel then depends on
    what ran before. Operands of the products themselves are not checked: they name four registers by one.
    """
    written: set[int] = set()
    early: set[int] = set()
    for operation, words in INSTRUCTION.findall(code):
        operands_of = [word.strip() for word in words.split(",")]
        if re.fullmatch(r"UP[T0-9]", operands_of[0]):  # the first of two results
            operands_of = operands_of[1:]
        target = re.fullmatch(r"UR(\d+)", operands_of[0]) if operands_of else None
        for word in operands_of[1 if target else 0 :]:
            if "gdesc" not in word:
                early |= {int(n) for n in re.findall(r"\bUR(\d+)\b", word)} - written
        if target:
            first = int(target[1])
            written |= set(
                range(first, first + (4 if ".128" in operation else 2 if TWO_REGISTERS.search(operation) else 1))
            )
    return len(early)
