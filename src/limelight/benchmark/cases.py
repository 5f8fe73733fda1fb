"""What `limelight bench` measures: cases as data. Sizes are those of the glossary (`limelight.tensors.shapes`)."""

from __future__ import annotations

from dataclasses import dataclass

#: Extras of a call beside its sizes and pattern; `timing.prepare` has the code of each.
EXTRAS = ("ALiBi", "soft cap", "bias", "sink", "dropout", "observations")


@dataclass(frozen=True)
class Case:
    """One case, which gives one row of the table.

    Attributes:
        name: unique name.
        group: the heading of the case.
        length: keys; also queries, unless ``queries`` is given.
        pattern: ``""`` (full), ``"causal"`` or ``"window N"`` (causal, the N newest keys).
        backward: forward and backward, counted as 3.5 times the forward pass.
        extra: one of `EXTRAS`; the plain call is then measured interleaved with it.
        documents: lengths of documents packed into one row, instead of ``length``; PyTorch gets them padded.
        per: the limit of the speed: ``"peak"`` of multiply-adds or ``"bandwidth"`` of reading; or ``"call"``:
            microseconds beside PyTorch's.
        quick: also measured with ``--quick``.
    """

    name: str
    group: str
    length: int = 0
    width: int = 64
    heads: int = 8
    key_value_heads: int | None = None
    queries: int | None = None
    dtype: str = "float32"
    pattern: str = ""
    backward: bool = False
    extra: str = ""
    documents: tuple[int, ...] = ()
    per: str = "peak"
    quick: bool = False


SHORT = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# 64 documents of 64 to 1,024 tokens, most of them short: 24,706 tokens, or 65,536 with padding.
DOCUMENTS = tuple(64 + 960 * n * n // 63**2 for n in range(64))
MEMORY_TOKENS, QUICK_MEMORY_TOKENS = 65536, 8192


def _tokens(length: int) -> str:
    return f"{length // 1024}k" if length % 1024 == 0 else str(length)


def cases() -> tuple[Case, ...]:
    """Return all cases, in the order in which they are printed."""
    table: list[Case] = []
    for dtype, short in SHORT.items():
        group = f"forward, {short}"
        for width in (64, 128):
            for length in (1024, 4096, 16384):
                for pattern in ("", "causal"):
                    name = f"{short} {pattern or 'full'} {_tokens(length)} x {width}"
                    quick = (length, width) in ((1024, 64), (4096, 64)) and pattern == "causal"
                    table.append(Case(name, group, length, width, dtype=dtype, pattern=pattern, quick=quick))
    for dtype, short in SHORT.items():
        for length in (2048, 8192):
            name = f"{short} forward + backward {_tokens(length)} x 64"
            group, quick = "forward and backward, causal", length == 2048
            table.append(Case(name, group, length, dtype=dtype, pattern="causal", backward=True, quick=quick))
    for dtype, short in SHORT.items():
        name, group = f"{short} decode 8k x 128, 32 / 8 heads", "one query, caches read from memory"
        table.append(Case(name, group, 8192, 128, 32, 8, 1, dtype=dtype, pattern="causal", per="bandwidth", quick=True))
    group = "patterns and layouts"
    for length in (4096, 16384):
        name = f"window 256 at {_tokens(length)} x 64"
        table.append(Case(name, group, length, pattern="window 256", quick=length == 4096))
    table.append(Case("64 packed documents x 64", group, pattern="causal", documents=DOCUMENTS, quick=True))
    group = "beside the plain call, causal 2k x 64"
    for extra in ("ALiBi", "soft cap", "bias", "sink"):
        for backward in (False, True):
            name = f"{extra}, forward + backward" if backward else extra
            table.append(
                Case(name, group, 2048, pattern="causal", backward=backward, extra=extra, quick=extra == "ALiBi")
            )
    for dtype in ("float32", "bfloat16"):
        name = f"dropout 0.1, {SHORT[dtype]}"
        table.append(Case(name, group, 2048, dtype=dtype, pattern="causal", extra="dropout"))
    table.append(Case("observations", group, 2048, pattern="causal", extra="observations", quick=True))
    group = "call overhead, fp32 x 64"
    for heads in (1, 8):
        for length in (16, 128):
            for backward in (False, True):
                name = f"{heads} x {length} tokens{', forward + backward' if backward else ''}"
                table.append(Case(name, group, length, heads=heads, backward=backward, per="call", quick=heads == 1))
    return tuple(table)
