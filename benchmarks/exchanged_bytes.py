"""Count the bytes that context parallelism exchanges, against an all-gather and a ring; nothing is sent.

python benchmarks/exchanged_bytes.py [--heads 8] [--width 128] [--bytes 2] [--write]

For each pattern and size, the runs of all ranks are dealt and the plan of one rank is made
(`limelight.distributed.deal`, `make_plan`), as in training; the seconds are those of this process, on one core. The
table gives bytes of one layer and one batch row: what the rank that sends most sends, and what the rank that receives
most receives, in the forward pass. `--write` keeps it in `exchanged_bytes.md` beside this file.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from limelight import Causal, Keys, Packed, Window
from limelight.distributed import deal, imbalance, make_plan, pairs_of_tokens
from limelight.distributed.report import keys_planned
from limelight.forms.layouts import Aligned

SIZES = ((2**13, 8), (2**17, 8), (2**20, 64), (2**20, 1024))
CAUSAL_WINDOW = Causal() & Window(255, 0)
#: Patterns of a layer, and whether the text is packed documents.
CASES = {
    "causal": (Causal(), False),
    "window 256": (CAUSAL_WINDOW, False),
    "4 sinks and window 256": (Causal() & (Window(255, 0) | Keys(4)), False),
    "documents, causal": (Causal(), True),
    "documents, window 256": (CAUSAL_WINDOW, True),
}
ABOUT = """\
Bytes of one layer and one batch row: {heads} heads of keys and values, {width} wide, {bytes} bytes a number, so that a
key with its value has {key:,} bytes. Causal patterns; a window of 256 is the token itself and the 255 before it.
Documents have lengths drawn from a log-normal distribution (median 600 tokens, a tenth above 3,900, cut at 128k and
at a quarter of the text; seed 0). Sent and received are those of the rank with most, in the forward pass.

- **All-gather, ring**: every rank gets the keys and values of all others, `(L - n) * key bytes` for `n` own tokens; a
  ring passes on as much. Backward, the gradients return by a reduce-scatter of as many bytes; a ring passes keys,
  values and their gradients around again, twice as many.
- **Exchanged**: a rank gets the keys that its queries see, and those between them where both lie in the same or in
  neighbouring blocks of 64. Backward, one gradient
  returns for each: as many bytes, the other way.
  A causal pattern over one text sees every key from some rank with a run at its end, so nothing is saved: keys then
  travel **by all-gather** (`Plan.gathers`: it brings a rank at most 1.25 times the keys that the one with the largest
  need gets, and all ranks together need half of what it brings). Over more than 8 ranks the gradients then return by a
  reduce-scatter of float32, twice the bytes in 16 bits, which adds up within a node before anything leaves it.
- **Imbalance**: the pairs of query and key of the fullest rank over the average. Every rank gets as many pieces.
  Unequal numbers of finer pieces would lower it from 1.53 to 1.05 for causal documents over 64 ranks, but the rank that
  sends most would send twice as many bytes, and by the arithmetic of `scaling.py` a step would take longer.
- **Planning**: seconds on one core to deal the runs of all ranks and to make the plan of one, without communication.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=8, help="heads of keys and values (8)")
    parser.add_argument("--width", type=int, default=128, help="width of a key and of a value (128)")
    parser.add_argument("--bytes", type=int, default=2, help="bytes of a number (2: bfloat16)")
    parser.add_argument("--write", action="store_true", help="keep the table in benchmarks/exchanged_bytes.md")
    options = parser.parse_args()
    key_bytes = options.heads * 2 * options.width * options.bytes
    about = ABOUT.format(heads=options.heads, width=options.width, bytes=options.bytes, key=key_bytes)
    lines = [
        about,
        "| tokens | ranks | pattern | all-gather, ring: MB | exchanged: sent, received, MB | all-gather / exchanged |"
        " imbalance | planning, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    for length, ranks in SIZES:
        for name in CASES:
            lines.append(row(name, length, ranks, key_bytes))
            print(lines[-1], flush=True)
    if options.write:
        head = "# Bytes exchanged by context parallelism\n\n`python benchmarks/exchanged_bytes.py --write`\n\n"
        Path(__file__).with_suffix(".md").write_text(head + "\n".join(lines) + "\n", "utf-8")


def row(name: str, length: int, ranks: int, key_bytes: int) -> str:
    """A row of the table: one pattern at one size."""
    pattern, packed = CASES[name]
    layout = Packed(documents(length)) if packed else None
    begin = time.process_time()
    runs = deal(length, ranks, [pattern], layout)
    plan = make_plan(pattern, layout or Aligned(), (1, 1, length, length), runs, runs, ranks // 2, contiguous=False)
    _ = plan.gathers, plan.sends, plan.sent, plan.received  # worked out when they are first read
    seconds = time.process_time() - begin
    sent, received = keys_planned(plan)
    gathered = length - min(sum(last - first for first, last in held) for held in runs)
    balance = imbalance(runs, pairs_of_tokens(length, [pattern], layout))
    most = max(*sent, *received)
    sizes = [f"{n * key_bytes / 1e6:,.1f}" for n in (gathered, max(sent), max(received))]
    moved = f"{sizes[1]}, {sizes[2]}{' by all-gather' if plan.gathers else ''}"
    ratio = f"{gathered / most:,.1f}" if most else "-"
    return (
        f"| {length // 1024:,}k | {ranks:,} | {name} | {sizes[0]} | {moved} | {ratio} | {balance:.2f} | {seconds:.2f} |"
    )


def documents(length: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths of documents that fill a text: log-normal, as in a corpus of web pages and a few books."""
    draw = np.random.default_rng(seed)
    found: list[int] = []
    rest = length
    while rest:
        found.append(min(rest, length // 4, 2**17, 1 + int(draw.lognormal(np.log(600), 1.46))))
        rest -= found[-1]
    return tuple(found)


if __name__ == "__main__":
    main()
