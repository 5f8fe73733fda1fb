"""Outputs, gradients and observations against the definition in float64."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
from torch import Tensor

import limelight
from limelight import (
    Causal,
    Observe,
)
from limelight.backends.gpu import machine
from limelight.backends.gpu.hopper import flash3, flash3_float8
from limelight.backends.gpu.hopper import tuning as flash3_tuning
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

from .calls import SIZES, TINY, excess, forms, poison, rounded_to, run, to_float8
from .selection import FLOAT8, by_name
from .speed import OWN_BACKWARD, own_backward

ROW_STATISTICS = ("logsumexp", "max_score", "max_weight", "entropy", "distance")


def correctness(device: torch.device, options: argparse.Namespace, failures: list[str]) -> list[dict[str, Any]]:
    print(f"correctness, seed {options.seed}")
    torch.manual_seed(options.seed)
    dtypes = (torch.float32, torch.float16, torch.bfloat16)[: 2 if machine.interpreted() else 3]
    rows: list[dict[str, Any]] = []
    for sizes in TINY if options.tiny else SIZES:
        B, Hq, Hkv, Lq, Lk, D, Dv = sizes
        for name, settings in forms(device, B, Hq, Lq, Lk, D):
            kinds = [(dtype, False) for dtype in (dtypes[:1] if options.tiny else dtypes)]
            if name != "dropout":  # gradients of a row with a non-finite output may be finite or not
                kinds.append((dtypes[0] if options.tiny else dtypes[-1], True))
            for dtype, spoiled in kinds:
                title = f"{'spoiled ' if spoiled else ''}{name} {str(dtype)[6:]} {sizes}"
                if not options.selection(title):
                    continue
                tensors = [
                    torch.randn(B, h, n, w, device=device).to(dtype)
                    for h, n, w in ((Hq, Lq, D), (Hkv, Lk, D), (Hkv, Lk, Dv))
                ]
                if spoiled:  # a non-finite value may affect only rows that see it
                    tensors[1][:, :, -1, 1], tensors[2][:, :, Lk // 2, 0] = float("nan"), float("inf")
                grad = torch.randn(B, Hq, Lq, Dv, device=device).to(dtype)
                backends = [
                    name for name in options.backends if not spoiled or name != "flash1"
                ]  # which does not isolate non-finite values
                rows += compared(title, tensors, grad, settings, backends, failures)
                if "flash3" in backends and max(D, Dv) > flash3_tuning.WIDEST_BACKWARD:
                    with own_backward(OWN_BACKWARD):
                        rows += compared(f"own backward {title}", tensors, grad, settings, ["flash3"], failures)
    served = [row for row in rows if "error over allowed" in row]
    print(f"  {len(served)} calls compared, {len(rows) - len(served)} not served", flush=True)
    return rows


def compared(
    title: str, tensors: list[Tensor], grad: Tensor, settings: dict[str, Any], backends: list[str], failures: list[str]
) -> list[dict[str, Any]]:
    """Compare a call, by every backend that serves it, with the definition in float64."""
    dtype, rows = tensors[0].dtype, []
    truth = run("reference", [t.double() for t in tensors], grad.double(), settings)
    plain = run("plain", tensors, grad, settings)
    for backend in backends:
        row: dict[str, Any] = {"call": f"{backend} {title}"}
        rows.append(row)
        if reasons := by_name(backend).reasons_against(prepare(*tensors, Settings(**settings))):
            row["not served"] = "; ".join(reasons)
            continue
        poison(tensors[0].device)
        try:
            ours = run(backend, tensors, grad, settings)
        except Exception as error:
            print(f"{row['call']}: {error!r}", file=sys.stderr, flush=True)
            if "CUDA error" in str(error):  # after which the GPU computes nothing more for this process
                raise
            failures.append(f"{row['call']}: {error!r}"[:500])
            continue
        errors = {
            what: excess(x, y, exact, dtype)
            for what, x, y, exact in zip(what_is_compared(settings, tensors), ours, plain, truth, strict=True)
            if x is not None and exact.numel()
        }
        row["error over allowed"] = max(errors.values())
        row["worst"] = max(errors, key=lambda what: errors[what])
        if not row["error over allowed"] <= 1.0:
            failures.append(f"{row['call']}: {row['error over allowed']:.2f} times the allowed error in {row['worst']}")
    return rows


def what_is_compared(settings: dict[str, Any], tensors: list[Tensor]) -> list[str]:
    """Name the results of `run`, in its order."""
    learned = [f"gradient of learned operand {n}" for n in range(len(prepare(*tensors, Settings(**settings)).operands))]
    return ["output", "logsumexp", "dQ", "dK", "dV", *learned]


def seen(device: torch.device, options: argparse.Namespace, failures: list[str]) -> list[dict[str, Any]]:
    """Compare every observation with the definition in float64."""
    rows = []
    for B, Hq, Hkv, Lq, Lk, D, _ in TINY if options.tiny else SIZES[1:4]:
        observed: dict[str, Any] = dict.fromkeys(ROW_STATISTICS, True) | {
            "received": True, "features": torch.randn(Lk, 9, device=device), "rows": (Lq - 1, 0), "blocks": (4, 7),
            "pairs": ((Lq - 1, 0), (0, Lk - 1)),
        }  # fmt: skip
        for name, settings in forms(device, B, Hq, Lq, Lk, D):
            dtype = torch.float32 if machine.interpreted() else torch.bfloat16
            title = f"sees {name} {str(dtype)[6:]} {(B, Hq, Hkv, Lq, Lk, D)}"
            if (options.tiny and name not in ("causal", "bits")) or not options.selection(title):
                continue
            tensors = [torch.randn(B, h, n, D, device=device).to(dtype) for h, n in ((Hq, Lq), (Hkv, Lk), (Hkv, Lk))]
            for backend in options.backends:
                call = prepare(*tensors, Settings(**settings, observe=Observe(**observed, top=5)))
                if by_name(backend).reasons_against(call):
                    continue
                poison(device)
                with torch.no_grad():
                    ours, plain, truth = (
                        limelight.attention(
                            *(t.to(kind) for t in tensors), **settings, observe=Observe(**observed, top=top), backend=by
                        )[1].seen()
                        for by, kind, top in (
                            (backend, dtype, 5), ("reference", dtype, 5), ("reference", torch.float64, 6)
                        )
                    )  # fmt: skip
                what = f"{backend} {title}"
                if not same_keys(ours.pop("top_keys"), truth.pop("top_keys"), truth["top_weights"]):
                    failures.append(f"{what}: other keys have the largest weights")
                truth["top_weights"] = truth["top_weights"][..., :5]
                worst = {
                    n: excess(ours[n].expand_as(x).double(), plain[n].double(), x.double(), torch.float32)
                    for n, x in truth.items()
                }
                rows.append({"call": what, "error over allowed": worst})
                failures += [f"{what}: {n} {x:.2f} times the allowed error" for n, x in worst.items() if not x <= 1.0]
    print(f"  observations of {len(rows)} calls compared", flush=True)
    return rows


def same_keys(ours: Tensor, truth: Tensor, weights: Tensor) -> bool:
    """Whether the keys of the largest weights are the same wherever no neighbour is as large, to rounding; ``truth``
    and ``weights`` have one key more.
    """
    apart = weights[..., :-1] - weights[..., 1:] > 1e-4
    clear = apart & torch.nn.functional.pad(apart, (1, -1), value=True)
    return torch.equal(ours[clear], truth[..., :-1][clear])


def float8(device: torch.device, options: argparse.Namespace, failures: list[str]) -> list[dict[str, Any]]:
    """The error of 8-bit products against float64, on normal numbers and with one outlier in a thousand, beside that of
    one scale for each tensor (weights of 8 bits too, all else in float64) and of `flash3`.
    """
    rows = []
    for length, D in ((160, 64),) if options.tiny else ((1000, 64), (4096, 128), (2000, 256)):
        for name, size in (("normal", 0.0), ("outliers", 10.0)):
            if not options.selection(f"float8 {name} {length} {D}"):
                continue
            q, k, v = torch.randn(3, 1, 4, length, D, device=device, dtype=torch.float64).unbind()
            q, k, v = (x + size * torch.randn_like(x) * (torch.rand_like(x) < 0.001) for x in (q, k, v))
            for pattern in (None, Causal()):
                truth = limelight.attention(q, k, v, pattern=pattern, backend="reference")
                error = lambda out: (out.double() - truth).square().mean().sqrt().item()  # noqa: B023, E731
                whole = [x.abs().max() / 448 for x in (q, k, v)]
                rounded = [(x / s).to(torch.float8_e4m3fn).double() * s for x, s in zip((q, k, v), whole, strict=True)]
                row: dict[str, Any] = {"length": length, "D": D, "inputs": name, "pattern": repr(pattern)}
                with rounded_to(to_float8):
                    row["per tensor"] = error(limelight.attention(*rounded, pattern=pattern, backend="reference"))
                half = [x.to(torch.bfloat16) for x in (q, k, v)]
                for backend in (flash3, flash3_float8):
                    call = prepare(*half, Settings(pattern=pattern))
                    if reasons := backend.reasons_against(call):
                        row[backend.NAME] = "not served: " + "; ".join(reasons)
                    else:
                        poison(device)
                        row[backend.NAME] = error(backend.forward(call).output)
                found = row[FLOAT8]
                # Without outliers, scales by block gain nothing, and may lose 5 %.
                allowed = row["per tensor"] * (1.0 if name == "outliers" else 1.05)
                if isinstance(found, float) and not found <= allowed:
                    failures.append(f"{FLOAT8} {row}: a larger error than with one scale for each tensor")
                rows.append(row)
                print("  float8:", row, flush=True)
    return rows
