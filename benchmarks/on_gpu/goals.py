"""Goals and predictions beside what was measured."""

from __future__ import annotations

from typing import Any

from .selection import FLOAT8


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each goal beside the worst measurement."""

    def worst(of: str, against: str, **case: Any) -> float | None:
        min_length = case.pop("from_length", 0)
        ratios = [
            row["tflops"][of] / row["tflops"][against]
            for row in result["speed"]
            if of in row["tflops"] and against in row["tflops"] and row["length"] >= min_length
            and all(row[name] in values for name, values in case.items())
        ]  # fmt: skip
        return min(ratios, default=None)

    d128 = {"D": (128,), "dtype": ("bfloat16",), "form": ("full", "causal"), "from_length": 4096}
    float8 = [
        row["tflops"][f"{FLOAT8} kernel"] for row in result["speed"]
        if f"{FLOAT8} kernel" in row["tflops"] and row["length"] == 16384 and row["form"] == "full" and row["D"] == 128
    ]  # fmt: skip
    found = [
        ("flash3 forward over cuDNN, from 4k", 0.9, worst("flash3", "cudnn", direction=("forward",), **d128)),
        ("flash3 backward over cuDNN, two owners", 0.6, worst("flash3", "cudnn", direction=("backward",), **d128)),
        ("flash3-float8 forward, full, 16k, TFLOP/s", 1000.0, min(float8, default=None)),
        ("flash2 forward over cuDNN", 0.75, worst("flash2", "cudnn", direction=("forward",))),
        ("flash2 forward over FlexAttention", 1.0, worst("flash2", "flex", direction=("forward",))),
        ("decode, of the memory bandwidth", 0.85, min((r["of bandwidth"] for r in result["decode"]), default=None)),
        (
            "a plain forward pass over one with all observations", 0.25,
            min((1 / r["all"] for r in result["observations"] if "all" in r), default=None),
        ),
    ]  # fmt: skip
    rows = []
    for goal, aim, measured in found:
        rows.append({"goal": goal, "aim": aim, "predicted": PREDICTED[goal], "measured": measured})
        shown = "nothing" if measured is None else f"{measured:.3g}"
        print(f"goal: {goal}: {aim:g}; predicted {PREDICTED[goal]:g}, measured {shown}", flush=True)
    return rows


# Predictions before the first run; the reasons are in `benchmarks/predictions.md`.
PREDICTED = {
    "flash3 forward over cuDNN, from 4k": 0.88,
    "flash3 backward over cuDNN, two owners": 0.65,
    "flash3-float8 forward, full, 16k, TFLOP/s": 950.0,
    "flash2 forward over cuDNN": 0.58,
    "flash2 forward over FlexAttention": 0.95,
    "decode, of the memory bandwidth": 0.8,
    "a plain forward pass over one with all observations": 0.35,
}
