"""What of `flash3` runs without a GPU: the plan of its work, in Triton's interpreter, and its reasons against calls.
`test_ahead` checks the compiled kernels.
"""

import numpy as np
import pytest
import torch

import limelight
from limelight import ALiBi, Bias, Causal, Chunks, Explicit, Keys, Packed, Padded, Prefix, SoftCap, Window
from limelight.backends import choose, native
from limelight.backends.gpu import arguments, compatibility, machine
from limelight.backends.gpu.hopper import bulk, flash3, sections, tuning
from limelight.backends.gpu.score_rules import rule_arguments
from limelight.backends.gpu.tuning import Tile
from limelight.backends.gpu.visibility import visibility
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

if machine.missing():
    pytest.skip(machine.missing(), allow_module_level=True)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    """Triton's kernels run in its interpreter, which is looked for when they are first imported."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def counted(call, rows=16, keys=16):
    """``(B, Lq, Lk)``: how often each pair is computed, by every step of every tile of a call's plan."""
    from support.schedule_probes import steps

    from limelight.backends.gpu.hopper.kernels import schedule

    B, _, Lq, Lk = call.shapes.scores
    visible = visibility(call.lowered, rows, call.query.device)
    const = arguments.constants(call, rule_arguments(call), visible, 1, 1, Tile(rows, keys, 4, 1))
    records = torch.full((visible.rows, visible.tiles, 32), -7, dtype=torch.int32)
    flags = torch.full((visible.rows, 70, visible.tiles), 7, dtype=torch.int32)
    schedule.plan[visible.tiles, visible.rows](
        records, flags, 70, visible.work, visible.segments, visible.segment, *visible.interval_tables, const=const
    )
    assert not flags.any()
    count = np.zeros((B, Lq, Lk), int)
    j = np.arange(Lk)
    for record in records.reshape(-1, 32):
        b, first, query_end = record[:3].tolist()
        last, total = min(query_end, first + rows), int(record[8])
        found = torch.empty((total, 2), dtype=torch.int32)
        bounds = torch.empty((total, rows, 2), dtype=torch.int32)
        steps[1,](record, found, bounds, *visible.interval_tables, const=const)
        assert found[:, 1].tolist() == sorted(found[:, 1].tolist(), reverse=True)  # what an edge cuts comes first
        for (n, masked), of in zip(found.tolist(), bounds.numpy(), strict=True):
            of_block = (j >= n * keys) & (j < n * keys + keys)
            inside = (j >= of[:, :1]) & (j < of[:, 1:]) if masked else True
            count[b, first:last] += np.broadcast_to(inside & of_block, (rows, Lk))[: last - first]
    return count


PATTERNS = [
    (None, None),
    (Causal(), None),
    (Causal() & (Window(9, 0) | Keys(first=3)), None),
    (Causal() | Prefix(20), limelight.Aligned(0)),
    (Chunks(24), limelight.Aligned(5, 3)),
    (Causal() & Window(70, 0), Packed((37, 0, 40), (50, 10, 37))),
    (Causal(), Padded(torch.tensor([70, 33]), torch.tensor([97, 0]))),
    ((Window(30, 9) & ~Window(4, 2)) | Keys(first=1), limelight.Aligned(0)),
]


@pytest.mark.parametrize(("pattern", "layout"), PATTERNS, ids=lambda x: str(x))
def test_steps_hold_every_seen_pair_once(pattern, layout):
    q, k = torch.zeros(2, 1, 77, 64), torch.zeros(2, 1, 97, 64)
    call = prepare(q, k, k, Settings(pattern=pattern, layout=layout))
    assert np.array_equal(counted(call), np.broadcast_to(call.lowered.rows(0, 77), (2, 1, 77, 97))[:, 0])


def counted_by_keys(call, group, queries=16, keys=32):
    """``(group, B, Lq, Lk)``: the same by the plan of tiles of keys, for the heads of a group."""
    from support.schedule_probes import query_steps

    from limelight.backends.gpu.hopper.kernels import schedule

    B, _, Lq, Lk = call.shapes.scores
    visible = visibility(call.lowered, 128, call.query.device)
    rules = rule_arguments(call)
    bounds = torch.zeros((2 * visible.intervals, B, Lq), dtype=torch.int32)
    schedule.bounds[visible.tiles, visible.rows](
        bounds, B, Lq, visible.work, visible.segments, visible.segment, *visible.interval_tables,
        const=arguments.constants(call, rules, visible, 1, 1, Tile(128, 128, 4, 1)),
    )  # fmt: skip
    begins, ends = bounds.numpy()[::2, ..., None], bounds.numpy()[1::2, ..., None]
    seen = ((np.arange(Lk) >= begins) & (np.arange(Lk) < ends)).any(0)
    by_keys = visible.by_keys(call.lowered, keys, call.query.device)
    const = arguments.constants(call, rules, by_keys, 1, 1, Tile(queries, keys, 4, 1))
    records = torch.full((by_keys.rows, by_keys.tiles, 32), -7, dtype=torch.int32)
    flags = torch.full((by_keys.rows, 70, by_keys.tiles), 7, dtype=torch.int32)
    schedule.plan_keys[by_keys.tiles, by_keys.rows](
        records, flags, 70, by_keys.work, by_keys.segments, by_keys.segment, *visible.interval_tables, const=const
    )
    assert not flags.any()
    count = np.zeros((group, B, Lq, Lk), int)
    for record in records.reshape(-1, 32):
        b, at, _, key_begin, key_end = record[:5].tolist()
        columns = slice(max(at, key_begin), min(at + keys, key_end))
        found = torch.empty((int(record[8]) * group, 3), dtype=torch.int32)
        query_steps[1,](record, found, group, const=const)
        assert found[:, 2].tolist() == sorted(found[:, 2].tolist(), reverse=True)
        for g, first, masked in found.tolist():
            rows = slice(first, min(first + queries, Lq))
            assert first % tuning.LINE == 0
            assert masked or (rows.stop - first == queries and columns.stop - columns.start == keys)
            count[g, b, rows, columns] += seen[b, rows, columns] if masked else 1
    return count


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(("pattern", "layout"), PATTERNS, ids=lambda x: str(x))
def test_steps_of_keys_hold_every_seen_pair_once(pattern, layout, group):
    q, k = torch.zeros(2, 1, 77, 64), torch.zeros(2, 1, 97, 64)
    call = prepare(q, k, k, Settings(pattern=pattern, layout=layout))
    truth = np.broadcast_to(call.lowered.rows(0, 77), (2, 1, 77, 97))[:, 0]
    assert np.array_equal(counted_by_keys(call, group), np.broadcast_to(truth, (group, 2, 77, 97)))


@pytest.mark.parametrize(("items", "programs"), [(1, 1), (5, 5), (12, 5), (13, 5), (264, 132), (1000, 132)])
def test_every_item_belongs_to_one_program(items, programs):
    from support.schedule_probes import numbers

    found = torch.zeros(items + programs, dtype=torch.int32)
    numbers[programs,](found, programs, items)
    assert found[:items].eq(1).all()
    assert found[items:].eq(0).all()


def test_the_order_is_by_sections_and_the_work_even():
    from support.schedule_probes import places

    found = torch.empty((8 * 7, 2), dtype=torch.int32)
    places[1,](found, 8 * 7, 8, 7, 3)
    expected = [(tile, c) for part in ((0, 1, 2), (3, 4, 5), (6,)) for tile in range(8) for c in part]
    assert [tuple(x) for x in found.tolist()] == expected
    # Tiles of a causal pattern, the longest first: programs that take them to and fro differ by one tile at most.
    lengths = [8 - tile for tile, _ in expected[:24]]
    work = [
        sum(n for at, n in enumerate(lengths) if p == (at % 4 if at // 4 % 2 == 0 else 3 - at % 4)) for p in range(4)
    ]
    assert max(work) - min(work) <= 1


def reasons(dtype=torch.bfloat16, D=128, L=256, **settings):
    q = torch.zeros(1, 2, L, D, dtype=dtype)
    return "; ".join(flash3.unsupported(prepare(q, q, q, Settings(**settings))))


def test_what_it_does_not_serve():
    assert reasons() == ""
    assert reasons(pattern=Causal(), scores=(ALiBi(torch.ones(2)), SoftCap(3.0)), sink=torch.zeros(2)) == ""
    assert "takes 33 to 256" in reasons(D=32)
    assert "takes 33 to 256" in reasons(D=257)
    assert "Lq is 63" in reasons(L=63)
    assert "score rule Bias" in reasons(scores=(Bias(torch.zeros(256)),))
    assert "needs a tile map" in reasons(pattern=Explicit(torch.eye(256, dtype=torch.bool)))
    assert "dropout has no flash3 kernel" in reasons(dropout=0.1)
    assert "32 bits" in reasons(layout=limelight.Aligned(2**40))


def test_a_machine_without_hopper_is_told_so(monkeypatch):
    q = torch.zeros(1, 1, 128, 64, dtype=torch.bfloat16)
    with pytest.raises(limelight.BackendError, match="the tensors are on cpu; flash3 runs on Hopper GPUs"):
        limelight.attention(q, q, q, backend="flash3")
    assert "the tensors are on cpu" in str(limelight.explain(q, q, q))
    monkeypatch.setattr(compatibility, "version", lambda: None)
    assert "not installed" in "".join(flash3.not_hopper(q.device))
    monkeypatch.setattr(compatibility, "version", lambda: (3, 6))
    assert flash3.not_hopper(q.device) == ["Triton 3.6 is installed; the kernels need 3.7 or later"]


def test_rows_are_padded_for_bulk_copies_only_where_they_must():
    fits = torch.randn(2, 50, 3, 72, dtype=torch.float16).transpose(1, 2)
    assert bulk.bulk_copyable(fits).data_ptr() == fits.data_ptr()
    for odd in (
        torch.randn(2, 3, 50, 67).half(),
        torch.randn(1, 1, 50, 72).half()[:, :, :, 1:65],
        fits[:, :1].expand(2, 3, 50, 72),
    ):
        copy = bulk.bulk_copyable(odd)
        assert torch.equal(copy, odd)
        assert copy.data_ptr() % 16 == 0
        assert all(stride % 8 == 0 and stride > 0 for stride in copy.stride()[:-1])


def test_sections_hold_whole_groups():
    assert tuning.section(64, 2**20, 8) == 64
    assert tuning.section(64, 8 * 2**20, 8) == 24
    assert tuning.section(64, 2**40, 8) == 8


@pytest.mark.parametrize(("tiles", "columns", "limit", "group"), [(32, 64, 12, 1), (128, 32, 12, 4), (33, 40, 24, 8)])
def test_sections_are_balanced_in_whole_groups(tiles, columns, limit, group):
    """Every candidate counted by hand: the loads of 132 programs that take the items of causal calls to and fro."""

    def balance(section):
        loads, number = [0] * 132, 0
        for first in range(0, columns, section):
            for tile in range(tiles):
                for _ in range(min(section, columns - first)):
                    turn, place = divmod(number, 132)
                    loads[place if turn % 2 == 0 else 131 - place] += 2 * (tiles - tile) + 3
                    number += 1
        return sum(loads) / 132 / max(loads)

    section = sections.balanced_section(tiles, columns, 132, limit, group)
    assert section % group == 0
    assert section <= max(limit, 132 // sections.SHARING)
    best = max(balance(n) for n in range(group, max(limit, 32) + 1, group))
    assert balance(section) >= min(sections.EVEN, best - 0.01)
    assert sections.balanced_section(tiles, columns, 132, section, group) == section


def test_the_forward_pass_takes_the_balanced_section(monkeypatch):
    found = []
    monkeypatch.setattr(machine, "processors", lambda device: 132)
    monkeypatch.setattr(flash3.launching, "launch", lambda kernel, grid, *arguments, **_: found.append(arguments))
    monkeypatch.setattr("limelight.backends.gpu.hopper.descriptors.describe", lambda *_: None)
    q = torch.zeros(1, 16, 2048, 128, dtype=torch.bfloat16)
    flash3.forward(prepare(q, q, q, Settings(pattern=Causal())))
    of_limit = tuning.section(16, 2048 * 256 * 2, 1)
    expected = sections.balanced_section(16, 16, 132, of_limit, 1)
    numbers = [[x for x in arguments if type(x) is int] for arguments in found]
    assert [16 * 16, 16, 16, expected] in [of_launch[:4] for of_launch in numbers]  # items, tiles, columns, section


def test_head_widths_choose_their_form():
    candidates = tuning.MEASURED | tuning.CANDIDATES
    assert tuning.forward_stages(candidates, 192, 40) == (candidates[192], (128, 64), (64, 0))
    assert tuning.forward_stages(candidates, 129, 160) == (candidates[192], (128, 64), (128, 64))
    assert tuning.forward_stages(candidates, 193, 64) == (candidates[256], (256, 0), (64, 0))
    assert tuning.forward_stages(tuning.MEASURED, 160, 64) == (tuning.MEASURED[256], (256, 0), (64, 0))
    assert tuning.forward_stages(tuning.FLOAT8, 40, 96) == (tuning.FLOAT8[128], (64, 0), (128, 0))
    assert tuning.forward_stages(candidates, 64, 64, rules=True)[0] == tuning.MEASURED[64]
    assert (candidates[64].rows, candidates[64].programs) == (64, 3)
    assert (candidates[192].rows, candidates[192].programs) == (128, 1)


@pytest.mark.parametrize(("width", "chosen"), [(128, "flash3"), (160, "flash2"), (256, "flash3")])
def test_where_flash2_is_faster_it_is_chosen_and_explained(monkeypatch, width, chosen):
    monkeypatch.setattr(native, "reasons_against", lambda call: ["the tensors are on a GPU"])
    monkeypatch.setattr(machine, "reasons_against", lambda device, dtype: [])
    monkeypatch.setattr(flash3, "not_hopper", lambda device: [])
    q = torch.zeros(1, 2, 128, width, dtype=torch.bfloat16)
    found = limelight.explain(q, q, q, pattern=Causal())
    assert found.backend == chosen
    assert bool(found.reasons.get("flash3")) == (chosen == "flash2")
    assert choose(prepare(q, q, q, Settings(pattern=Causal())), "flash3") is flash3
    monkeypatch.setattr(tuning, "FORWARD", tuning.MEASURED | tuning.CANDIDATES)
    assert limelight.explain(q, q, q, pattern=Causal()).backend == "flash3"
