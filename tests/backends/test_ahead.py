"""The GPU kernels compiled ahead of time, without a GPU: what the assembler makes of them is kept in a table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from limelight.backends.gpu import machine

ROOT = Path(__file__).parents[2]
TABLE = json.loads((ROOT / "tests" / "backends" / "ahead.json").read_text())
# Compiled in every run; all others by `python benchmarks/ahead.py --write tests/backends/ahead.json`.
AGAIN = (
    "forward causal 64, hopper",
    "forward causal 128, ampere",
    "backward causal 64, hopper",
    "backward bias 64, ampere",
    "third causal 128, hopper",
    "third backward causal 64, hopper",
    "forward causal 64, blackwell",
)
# Bytes that a program may have. What is compiled for Ampere's A100 runs on its smaller sisters too.
OLDER = ("ampere", "ampere 86", "ada", "blackwell 120")  # or of their kind
SHARED = {"hopper": 227 * 1024, "blackwell": 227 * 1024} | dict.fromkeys(OLDER, 99 * 1024)
PRODUCTS = {"hopper": "HGMMA", "blackwell": "UTCHMMA"} | dict.fromkeys(OLDER, "HMMA")


def kernels():
    for case, lines in TABLE["cases"].items():
        for line in lines:
            yield case, case.split(", ")[-1], line


@pytest.mark.skipif(bool(machine.missing()), reason=machine.missing() or "Triton is there")
def test_the_table_is_up_to_date(tmp_path):
    import triton

    if triton.__version__ != TABLE["triton"]:
        pytest.skip(f"the table was made with Triton {TABLE['triton']}, this is {triton.__version__}")
    subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "ahead.py", *AGAIN, "--write", tmp_path / "again.json"],
        env=os.environ | {"TRITON_INTERPRET": "0"}, check=True, capture_output=True,
    )  # fmt: skip
    again = json.loads((tmp_path / "again.json").read_text())["cases"]
    assert again == {name: TABLE["cases"][name] for name in AGAIN}


def test_nothing_is_serialised_and_all_fits():
    for case, generation, kernel in kernels():
        assert kernel["shared"] <= SHARED[generation], case
        assert kernel["registers"] * kernel["warps"] * 32 <= 2**16, f"{case}: more registers than a multiprocessor has"
        if not kernel["rescue"]:
            assert not kernel["serialised"], case


def test_no_register_is_read_that_nothing_has_set():
    for case, _, kernel in kernels():
        assert kernel["unset"] == 0, case


#: The smallest tile of the widest heads, with all 255 registers: no other shape needs fewer (bytes of a thread).
KNOWN_SPILLS = {("backward bias 512, blackwell 120", "key_gradient"): 20}


def test_nothing_spills():
    for case, _, kernel in kernels():
        known = KNOWN_SPILLS.get((case, kernel["kernel"]), 0)
        assert kernel["rescue"] or kernel["spilled"] <= known, case


def test_spills_of_rescue_kernels_are_recorded_and_bounded():
    """The table gives the reason and the bytes of each; all are far below a thread's limit (512 KiB)."""
    recorded = TABLE["rescues"]
    assert "rows keep their bits" in recorded["why"]
    most = {}
    for _, generation, kernel in kernels():
        if kernel["rescue"]:
            name = f"{kernel['kernel']}, {generation}"
            most[name] = max(most.get(name, 0), kernel["spilled"])
    assert recorded["spilled"] == most
    assert max(most.values()) <= 2**15


def test_forward_passes_use_the_matrix_units():
    for case, generation, kernel in kernels():
        if kernel["kernel"] != "forward" or kernel["rescue"]:
            continue
        few = "512" in case or "decode" in case  # rows: Hopper's own instruction wants 64 of them
        wanted = "HMMA" if few else "QGMMA" if "float8" in case else PRODUCTS[generation]
        if "float32" not in case:
            assert kernel["instructions"][wanted] > 0, case
        if case.startswith("third"):
            assert kernel["instructions"]["UTMALDG"] > 0, case
        elif "512" not in case and "float32" not in case and "tiles" not in case:
            assert kernel["instructions"]["LDGSTS"] > 0, f"{case}: nothing is copied ahead"


# Tiles of 32 keys, where 64 would spill.
FEW = [
    *(
        ("key_gradient", f"backward {form}, hopper")
        for form in ("bias 128", "dropout 128", "demanding 128", "causal 256")
    ),
    ("key_gradient", "backward bias 128, blackwell"),
]


def test_gradients_use_the_matrix_units():
    owners = ("query_gradient", "key_gradient", "gradient")
    for case, generation, kernel in kernels():
        if kernel["kernel"] in owners and not kernel["rescue"] and "float32" not in case:
            few = kernel["kernel"] != "gradient" and ("512" in case or (kernel["kernel"], case) in FEW)
            wanted = "HMMA" if few else PRODUCTS[generation]
            assert kernel["instructions"][wanted] > 0, case


def test_gradients_of_the_third_multiply_as_often_as_they_should():
    """A step of an owner sums some products over the width and some over the moving block: of queries two and one, of
    keys two and two; of wide heads' keys two and one, values one and one. Three steps stand in the code of each of two
    warpgroups (the first, those that an edge cuts, whole ones). An instruction takes 16 terms of a sum."""
    moving = {
        "rules 64": (64, 64), "rules 128": (32, 32), "64": (128, 64), "96": (64, 64), "128": (64, 64),
        "192": (64, 64, 64), "256": (64, 64, 64),
    }  # fmt: skip
    cases = [case for case in TABLE["cases"] if case.startswith("third backward")]
    assert cases
    for case in cases:
        name = next(n for n in moving if f" {n}" in case)
        width = {"rules 64": 64, "64": 64, "192": 256, "256": 256}.get(name, 128)
        found = [kernel for kernel in TABLE["cases"][case] if kernel["kernel"] == "gradient"]
        sums = ((2, 1), (2, 2)) if width <= 128 else ((2, 1), (2, 1), (1, 1))
        for kernel, block, (over_width, over_block) in zip(found, moving[name], sums, strict=True):
            assert kernel["instructions"]["UTMALDG"] > 0, case
            step = (over_width * width + over_block * block) // 16
            assert kernel["instructions"]["HGMMA"] == 2 * 3 * step, case
            if "rules" not in case and width <= 128:  # rules have a tanh too; wide heads have products to hide it
                assert kernel["exponentials under a product"] >= 2 * 2 * block * 64 // 128, case


#: Of the forward pass of the third, by the width in the name of a case: warpgroups, keys of a block, instructions of a
#: product of queries and keys and of one of weights and values, each of which takes 16 terms of a sum.
FORMS = {"64": (2, 128, 12), "96": (2, 128, 16), "128": (2, 128, 16), "192": (2, 32, 18), "256": (2, 32, 18)}
CANDIDATES = {"64": (1, 128, 12), "192": (2, 64, 20), "256": (2, 64, 20)}  # 192: its values are two products
OF_FLOAT8 = {"64": (2, 128, 6), "128": (2, 128, 8), "256": (2, 64, 10)}  # 32 terms


def forward_passes_of_the_third():
    for case, _, kernel in kernels():
        if case.startswith("third") and kernel["kernel"] == "forward" and not kernel["rescue"]:
            table = CANDIDATES if "candidate" in case else OF_FLOAT8 if "float8" in case else FORMS
            yield case, kernel, table[next(name for name in reversed(table) if f" {name}" in case)]


def test_forward_passes_of_the_third_multiply_as_often_as_they_should():
    """Of each warpgroup three products of queries and keys stand in the code (the first block, those that an edge cuts,
    whole ones), and as many of weights and values."""
    found = list(forward_passes_of_the_third())
    assert found
    for case, kernel, (warpgroups, _, products) in found:
        instruction = "QGMMA" if "float8" in case else "HGMMA"
        assert kernel["instructions"][instruction] == warpgroups * 3 * products, case


def test_weights_are_made_while_products_run():
    """Between the wait for ``Q K`` and the wait for ``P V`` stand all exponentials of a step, in each of two loops; the
    assembler moves them behind both waits where nothing holds them."""
    for case, kernel, (warpgroups, keys, _) in forward_passes_of_the_third():
        of_a_step = keys * 64 // 128  # a thread's share of 64 queries by a block of keys
        assert kernel["exponentials under a product"] >= warpgroups * 2 * of_a_step, case


def test_three_programs_of_one_warpgroup_fit_on_a_multiprocessor():
    alone = [(case, kernel) for case, kernel, form in forward_passes_of_the_third() if form[0] == 1]
    assert alone
    for case, kernel in alone:
        assert kernel["registers"] <= 168, case
        assert kernel["warps"] == 4, case
        assert 3 * (kernel["shared"] + 1024) <= 228 * 1024, case  # of which the driver takes 1 KiB for each program


def test_weights_are_carried_without_being_taken_apart():
    """Of each warpgroup a loop over blocks that an edge cuts, and one over whole blocks, which is shorter."""
    for case, kernel, (warpgroups, _, _) in forward_passes_of_the_third():
        assert len(kernel["steps"]) == 2 * warpgroups, case
        assert all(step["PRMT"] == 0 for step in kernel["steps"]), case
        assert kernel["steps"][1]["instructions"] < kernel["steps"][0]["instructions"], case


def test_score_gradients_are_carried_without_being_taken_apart():
    found = [
        (case, kernel["steps"])
        for case, _, kernel in kernels()
        if case.startswith("third") and kernel["kernel"] == "gradient" and "steps" in kernel
    ]
    assert any(steps for _, steps in found)
    for case, steps in found:
        assert all(step["PRMT"] == 0 for step in steps), case
