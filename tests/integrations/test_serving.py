"""What a serving engine says, as settings of a call; what is observed of its requests. No engine is needed."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import limelight
from limelight import ArgumentError, BackendError, Causal, Observe, Packed, Window
from limelight.backends import huge_pages
from limelight.forms.scores import ALiBi, SoftCap
from limelight.integrations.serving import (
    DECODER,
    ENCODER_DECODER,
    ENCODER_ONLY,
    LayerSettings,
    reasons_against_layer,
    reasons_against_model,
    refuse,
    settle,
)
from limelight.integrations.serving_observe import (
    MAX_TOP,
    LayerRecord,
    Record,
    Records,
    Wanted,
    joined,
    number_of,
    split,
)


def test_what_a_layer_sees():
    plain = LayerSettings.read(0.125, None, None, None)
    assert (plain.scale, plain.scores) == (0.125, ())
    assert repr(plain.pattern(True)) == repr(Causal())
    assert plain.pattern(False) is None
    windowed = LayerSettings.read(1, 48, 0, None)  # 48 tokens, itself included
    assert repr(windowed.pattern(True)) == repr(Window(47, 0))
    assert repr(windowed.pattern(False)) == repr(Window(47, 47))
    assert LayerSettings.read(1, -1, None, None).window is None


def test_the_rules_of_a_layer():
    capped, biased = LayerSettings.read(1, None, 30, [0.5, 0.25]).scores
    assert isinstance(capped, SoftCap)
    assert isinstance(biased, ALiBi)
    assert capped.limit == 30
    assert biased.slopes.tolist() == [0.5, 0.25]


def test_a_window_is_that_of_the_definition():
    query, key, value = (torch.randn(1, 2, 9, 8) for _ in range(3))
    for causal in (True, False):
        pattern = LayerSettings.read(1, 3, None, None).pattern(causal)
        far = torch.arange(9)[:, None] - torch.arange(9)
        seen = (far < 3) & (far >= 0 if causal else far > -3)
        found = limelight.attention(query, key, value, pattern=pattern, scale=1)
        expected = torch.where(seen, query @ key.mT, -torch.inf).softmax(-1) @ value
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("kind", "dtype", "shared", "window", "reason"),
    [
        ("unheard of", "auto", None, None, "'unheard of' is not known"),
        (DECODER, "fp8", None, None, "stored as 'fp8'"),
        (DECODER, "bfloat16", None, None, "beside queries of torch.float32"),
        (ENCODER_DECODER, "auto", None, 4, "cross-attention with a window"),
        (ENCODER_ONLY, "auto", "layers.0", None, "those of layers.0"),
    ],
)
def test_what_is_refused(kind, dtype, shared, window, reason):
    reasons = reasons_against_layer(kind, dtype, torch.float32, shared, window)
    with pytest.raises(BackendError, match=f"Limelight cannot serve this: .*{reason}.*VLLM_PLUGINS="):
        refuse("this", reasons)


def test_what_is_served():
    for kind in (DECODER, ENCODER_ONLY, ENCODER_DECODER):
        for name in ("auto", "bfloat16"):
            refuse("this", reasons_against_layer(kind, name, torch.bfloat16, None, None))
    refuse("this", reasons_against_layer(DECODER, "auto", torch.float16, "layers.0", 4))


def configured(*, images=False, parts=1, draft=None, second_runner=False):
    """As much of vLLM's configuration as is read."""
    return SimpleNamespace(
        model_config=SimpleNamespace(is_mm_prefix_lm=images),
        parallel_config=SimpleNamespace(decode_context_parallel_size=parts, prefill_context_parallel_size=1),
        speculative_config=draft,
        use_v2_model_runner=second_runner,
    )


LAYERS = [SimpleNamespace(head_size=64, head_size_v=64), SimpleNamespace()]


@pytest.mark.parametrize(
    ("config", "layers", "observed", "reason"),
    [
        (configured(images=True), LAYERS, False, "images attend to themselves"),
        (configured(parts=2), LAYERS, False, "context parallelism"),
        (configured(), [SimpleNamespace(head_size=64, head_size_v=32)], False, "values are 32 wide and its keys 64"),
        (configured(draft="a draft"), LAYERS, True, "speculative decoding"),
        (configured(second_runner=True), LAYERS, True, "VLLM_USE_V2_MODEL_RUNNER=0"),
    ],
)
def test_models_that_are_refused(config, layers, observed, reason):
    (found,) = reasons_against_model(config, layers, observed)
    assert reason in found


def test_models_that_are_served():
    for config, observed in ((configured(), True), (configured(draft="a draft", second_runner=True), False)):
        assert reasons_against_model(config, LAYERS, observed) == []


def test_reading_what_is_wanted():
    wanted = Wanted.parse(" received , entropy,top=8, entropy ;layers=0-3, 7")
    assert wanted == Wanted(("received", "entropy"), 8, ((0, 3), (7, 7)))
    assert [number for number in range(10) if wanted.includes(number)] == [0, 1, 2, 3, 7]
    assert Wanted.parse("max_weight").includes(12)
    assert repr(Wanted.parse("max_weight,top=2").observe()) == repr(Observe(max_weight=True, top=2))


@pytest.mark.parametrize(
    "text",
    ["", "weights", "entropy,", "top", "top=0", f"top={MAX_TOP + 1}", "top=9999999999", "entropy; layers", "entropy;",
     "entropy; layers=3-", "entropy; layers=1; layers=2", "entropy layers=1", "layers=1", 3, ["entropy"]],
)  # fmt: skip
def test_what_cannot_be_read(text):
    with pytest.raises(ArgumentError, match=r'`FIELD` .*"entropy,received,top=8; layers=0-3,7"'):
        Wanted.parse(text, "FIELD")


def test_a_range_of_layers_runs_upwards():
    with pytest.raises(ArgumentError, match=r"it has 5-3\. Write 3-5"):
        Wanted.parse("entropy; layers=0-2,5-3")


def test_numbers_that_json_does_not_have():
    layer = LayerRecord()
    layer.add(0, {"entropy": torch.tensor([[0.5, torch.nan]]), "received": torch.tensor([[torch.inf, 1.0]])})
    assert layer.numbers() == {"first": 0, "end": 2, "entropy": [[0.5, None]], "received": [[None, 1.0]]}


def test_layers_that_the_model_does_not_have():
    records = Records(None)
    records.begin("a", [1], 0, "entropy; layers=99")
    records.finish("a")
    assert "No layer was observed" in records.find("a")["notes"][0]


def test_the_environment():
    assert Records.from_environment({}) is None
    assert Records.from_environment({"LIMELIGHT_OBSERVE": " "}) is None
    assert Records.from_environment({"LIMELIGHT_OBSERVE": "requests"}).default is None
    variables = {"LIMELIGHT_OBSERVE": "entropy", "LIMELIGHT_OBSERVE_MIB": "3", "LIMELIGHT_OBSERVE_FILE": "a"}
    first, second = (Records.from_environment(variables, rank) for rank in (0, 1))
    assert (first.default, first.limit, first.file, second.file) == (Wanted(("entropy",)), 3 * 2**20, "a", "a.rank1")
    for name, value in (("LIMELIGHT_OBSERVE", "all"), ("LIMELIGHT_OBSERVE_MIB", "0"), ("LIMELIGHT_OBSERVE_MIB", "1.5")):
        with pytest.raises(ArgumentError, match=f"`{name}`"):
            Records.from_environment(variables | {name: value})
    with pytest.raises(ArgumentError, match="`LIMELIGHT_OBSERVE_FILE` must lie in a folder that exists"):
        Records.from_environment(variables | {"LIMELIGHT_OBSERVE_FILE": "no/such/folder/a.jsonl"})
    with pytest.raises(ArgumentError, match="requests alone leaves it to each request"):
        Records.from_environment({"LIMELIGHT_OBSERVE": "request"})


def test_numbers_of_layers():
    names = ("model.layers.3.self_attn.attn", "transformer.h.11.attn", "0.attention", "attention")
    assert [number_of(name) for name in names] == [3, 11, 0, 0]


def observed(records, lengths, observe, seed=0):
    """Texts that are computed in pieces, in batches of those that ``lengths`` names; whole keys and queries of each."""
    torch.manual_seed(seed)
    texts = {name: torch.randn(3, 2, sum(pieces), 4) for name, pieces in lengths.items()}
    there = dict.fromkeys(lengths, 0)
    for step in range(max(map(len, lengths.values()))):
        batch = [name for name, pieces in lengths.items() if step < len(pieces)]
        records.names = lambda batch=batch: batch
        queries = [lengths[name][step] for name in batch]
        keys = [there[name] + lengths[name][step] for name in batch]
        q = torch.cat([texts[n][0][:, there[n] : k] for n, k in zip(batch, keys, strict=True)], 1)[None]
        k, v = (torch.cat([texts[n][i][:, :k] for n, k in zip(batch, keys, strict=True)], 1)[None] for i in (1, 2))
        _, seen = limelight.attention(q, k, v, layout=Packed(queries, keys), pattern=Causal(), observe=observe)
        parts = split(seen, queries, keys)
        for row, record in records.chosen("layers.0", len(batch)).items():
            record.add("layers.0", keys[row] - queries[row], parts[row])
        for name, count in zip(batch, keys, strict=True):
            there[name] = count
    return texts


def test_a_request_in_pieces_is_observed_as_a_whole():
    records = Records(None)
    records.begin("a", range(7), 0, "entropy,received,top=2")
    records.begin("b", range(5), 0)
    texts = observed(records, {"a": [4, 2, 1, 1], "b": [5, 1]}, Observe(entropy=True, received=True, top=2))
    assert set(records.running) == {"a"}
    layer = records.find("a")["layers"]["layers.0"]
    q, k, v = texts["a"][:, None]
    _, whole = limelight.attention(q, k, v, pattern=Causal(), observe=Observe(entropy=True, received=True, top=2))
    assert (layer["first"], layer["end"]) == (0, 8)
    for name in ("entropy", "received", "top_weights", "top_keys"):
        torch.testing.assert_close(
            torch.tensor(layer[name]), getattr(whole, name)[0], check_dtype=False, atol=2e-5, rtol=0
        )


def test_keys_of_the_prefix_cache_are_named():
    record = Record("a", (1, 2, 3), 2, Wanted(("entropy",)))
    record.add("layers.0", 2, {"entropy": torch.zeros(2, 1)})
    data = record.data()
    assert (data["cached"], data["layers"]["layers.0"]["first"]) == (2, 2)
    assert "first 2 tokens came from the prefix cache" in data["notes"][0]


def test_a_preempted_request_begins_anew():
    record = Record("a", (1, 2, 3), 0, Wanted(("received",)))
    for start, count in ((0, 3), (3, 1), (0, 4)):
        record.add("layers.0", start, {"received": torch.ones(1, start + count), "entropy": torch.ones(1, count)})
    layer = record.data()["layers"]["layers.0"]
    assert layer == {"first": 0, "end": 4, "received": [[1.0] * 4], "entropy": [[1.0] * 4]}
    assert record.size == 32
    assert "preempted" in record.notes[0]


def test_observations_of_running_requests_are_bounded():
    records = Records(Wanted(("entropy",)), limit=1000)
    records.names = lambda: ["a", "b"]
    records.begin("a", (), 0)
    records.begin("b", (), 0)
    for start in range(400):
        for row, record in records.chosen("layers.0", 2).items():
            record.add("layers.0", start, {"entropy": torch.full((1 + row, 1), float(start))})
    first, second = records.running.values()
    assert (first.size + second.size) <= 1000 + 12
    assert second.size > first.size / 2  # the larger one was left first
    for record in (first, second):
        assert "LIMELIGHT_OBSERVE_MIB" in record.notes[0]
        layer = record.layers["layers.0"]
        assert len(layer.parts["entropy"]) < 64
        assert layer.numbers()["entropy"][0] == list(range(layer.end))
    records.finish("a")
    for number in range(1100):
        records.begin(f"b{number}", (), 0)
        records.finish(f"b{number}")
    assert len(records.done) == 1000


def test_finished_requests_are_bounded():
    records = Records(Wanted(("entropy",)), limit=100)
    for name in "abc":
        records.begin(name, (), 0)
        records.running[name].add("layers.0", 0, {"entropy": torch.zeros(1, 15)})
        records.finish(name)
    assert [one["request"] for one in records.list()] == ["c"]


def test_a_mistake_of_a_request_is_kept_with_it():
    records = Records(Wanted(("entropy",)))
    records.names = lambda: ["a"]
    records.begin("a", (1,), 0, "weights")
    assert records.chosen("layers.0", 1) == {}
    assert "`limelight_observe` must name fields" in records.find("a")["notes"][0]


def test_a_layer_that_computes_pieces_of_texts_is_named():
    records = Records(Wanted(("entropy",)))
    records.names = lambda: ["a"]
    records.begin("a", (1,), 0)
    assert records.chosen("layers.0", 3) == {}
    assert "layers.0 was not observed" in records.find("a")["notes"][0]


def test_requests_are_found_by_the_names_of_their_answers():
    records = Records(Wanted(("entropy",)))
    for name in ("cmpl-12-0-9f", "0_chatcmpl-34-8e", "cmpl-120-0-7d"):
        records.begin(name, (), 0)
    records.generated = lambda name: [7, 8]
    assert records.find("cmpl-12")["request"] == "cmpl-12-0-9f"
    assert records.find("chatcmpl-34")["request"] == "0_chatcmpl-34-8e"
    assert records.find("cmpl-120-0-7d")["tokens"] == [7, 8]
    assert records.find("cmpl") is not None
    assert records.find("2") is None


def test_lines_of_a_file(tmp_path):
    file = tmp_path / "observed.jsonl"
    records = Records(Wanted(("entropy",)), file=str(file), file_limit=400)
    records.generated = lambda name: [5, 6]
    for name in "abcd":
        records.begin(name, (1, 2), 0)
        records.running[name].add("layers.0", 0, {"entropy": torch.tensor([[0.0, 0.693147]])})
        records.finish(name)
    lines = [
        json.loads(line) for path in (tmp_path / "observed.jsonl.1", file) for line in path.read_text().splitlines()
    ]
    assert [line["request"] for line in lines] == ["a", "b", "c", "d"][-len(lines) :]
    assert len(lines) > 1
    assert lines[-1]["tokens"] == [5, 6]
    assert lines[-1]["layers"]["layers.0"]["entropy"] == [[0.0, 0.69315]]
    assert file.stat().st_size <= 400
    assert file.stat().st_mode & 0o077 == 0  # prompts of others


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path):
    records = Records(Wanted(("entropy",)), file=str(tmp_path / "absent" / "observed.jsonl"))
    records.begin("a", (), 0)
    records.close()
    assert "could not be written" in records.find("a")["notes"][0]


def test_heads_of_several_workers_are_joined():
    layer = {"first": 0, "end": 1}
    parts = [
        {"request": "a", "notes": ["cached"], "layers": {"0": {**layer, "entropy": [[rank]]}}, "finished": True}
        for rank in range(2)
    ]
    whole = joined([*parts, None])
    assert whole["layers"]["0"] == {**layer, "entropy": [[0], [1]]}
    assert whole["notes"] == ["cached"]
    assert joined([None, None]) is None


# --- Where a cache lies ------------------------------------------------------------------------------------------


def test_the_memory_of_a_cache_is_moved_once_and_that_of_the_next_one_at_its_address_too(monkeypatch):
    asked, memory = [], np.zeros(100, np.float32)
    monkeypatch.setattr(huge_pages, "use", lambda tensor, seconds: asked.append(tensor.data_ptr()) or 0)
    first = torch.from_numpy(memory)
    for layer in (first, first.view(2, 50)[1], first[10:]):
        settle(layer)
    assert asked == [first.data_ptr()]
    del first, layer
    second = torch.from_numpy(memory)
    settle(second)
    assert asked == [second.data_ptr()] * 2


@pytest.mark.parametrize(
    ("moved", "message"), [(3 * 2**30, ["3.00 GiB of the cache"]), (0, []), (None, ["The system refuses huge pages"])]
)
def test_the_log_says_where_a_cache_lies(moved, message, monkeypatch, caplog):
    monkeypatch.setattr(huge_pages, "use", lambda *_: moved)
    with caplog.at_level(logging.INFO, "vllm.limelight"):
        settle(torch.ones(3))
    assert [record.getMessage()[: len(text)] for record, text in zip(caplog.records, message, strict=True)] == message
