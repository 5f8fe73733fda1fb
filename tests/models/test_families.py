"""Every family on small random models: equal to transformers, saved and read by transformers, field by field."""

import json

import pytest
import torch
from agreement import assert_equal, assert_no_worse, float64_throughout
from peers import TEXT, batch, made, run, takes_positions

from limelight.checkpoints.load import load
from limelight.models.families import FAMILIES, Published


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def compared(ours, theirs, side="right"):
    """Pairs of tensors that should be equal, at tokens that exist."""
    ids, layout, exists = batch(side, theirs.config.pad_token_id or 0)
    mine, other = ours(ids, layout=layout, hidden=True), run(theirs, ids, exists)
    pairs = [(a[exists], b[exists]) for a, b in zip(mine.hidden, other.hidden_states, strict=True)]
    if mine.logits is not None:
        per_text = mine.logits.dim() == 2
        pairs.append((mine.logits, other.logits) if per_text else (mine.logits[exists], other.logits[exists]))
    return pairs


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", TEXT)
def test_equal_to_transformers(tmp_path, name, side):
    theirs = made(name)
    if side == "left" and (not takes_positions(theirs) or name.endswith("-classes")):
        side = "right"  # without places of its own, or reading its first column whatever it is
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, dtype=torch.float64)
    assert (ours(torch.tensor([[7]])).logits is None) == (not hasattr(theirs(torch.tensor([[7]])), "logits"))
    with float64_throughout(theirs):
        for mine, other in compared(ours, theirs, side):
            assert_equal(mine, other)


def test_angles_that_depend_on_the_length(tmp_path):
    """Transformers lets the longest text of a batch decide for all; here each text decides for itself."""
    rope = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0}
    changed = {
        "dynamic": (*TEXT["llama"][:2], TEXT["llama"][2] | {"rope_parameters": rope, "max_position_embeddings": 8})
    }
    theirs = made("dynamic", changed)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, dtype=torch.float64)
    assert ours.config.limit == 24
    assert FAMILIES["llama"].publish(ours.config)["max_position_embeddings"] == 8
    ids = torch.arange(22).reshape(2, 11)
    for length in (7, 11):
        with float64_throughout(theirs):
            assert_equal(ours(ids[:, :length]).logits, theirs(ids[:, :length]).logits)


@pytest.mark.parametrize("name", TEXT)
def test_no_worse_than_transformers_in_float32(tmp_path, name):
    theirs = made(name).to(torch.float32)
    theirs.save_pretrained(tmp_path)
    narrow = compared(load(tmp_path), theirs)
    with float64_throughout(theirs):
        wide = compared(load(tmp_path, dtype=torch.float64), theirs.to(torch.float64))
    for (mine, eager), (_, truth) in zip(narrow, wide, strict=True):
        assert_no_worse(mine, eager, truth)


@pytest.mark.parametrize("name", TEXT)
def test_saved_for_transformers(tmp_path, name):
    theirs = made(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs", dtype=torch.float64)
    ours.save(tmp_path / "ours")
    again, told = type(theirs).from_pretrained(tmp_path / "ours", dtype="auto", output_loading_info=True)
    # what we left aside is not in the file; transformers makes it anew
    assert {key.split(".", 1)[-1] for key in told["missing_keys"]} <= {key.split(".", 1)[-1] for key, _ in ours.unused}
    assert not told["unexpected_keys"]
    assert not told["mismatched_keys"]
    again.set_attn_implementation("eager")
    ids, _, exists = batch("right", theirs.config.pad_token_id or 0)
    with float64_throughout(theirs, again):
        before, after = run(theirs, ids, exists), run(again.eval(), ids, exists)
    for a, b in zip(before.hidden_states, after.hidden_states, strict=True):
        assert torch.equal(a[exists], b[exists])
    if ours.network.head is not None:
        per_text = before.logits.dim() == 2
        assert torch.equal(*(logits if per_text else logits[exists] for logits in (before.logits, after.logits)))


@pytest.mark.parametrize("name", TEXT)
def test_a_configuration_there_and_back(tmp_path, name):
    made(name).config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [TEXT[name][0].__name__]}
    family = FAMILIES[values["model_type"]]
    config = family.configure(Published("config.json", values))
    said = family.publish(config)
    json.dumps(said)
    assert family.configure(Published("config.json", said | family_marks(values))) == config
    assert said["architectures"] == [TEXT[name][0].__name__]


def family_marks(values):
    return Published("config.json", values).marks()


# What changes no output of a model in use: training, bookkeeping, how transformers runs, and what generation decides.
HARMLESS = {
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "qa_dropout", "summary_first_dropout"),
    *("initializer_range", "sinusoidal_pos_embds", "problem_type", "pretraining_tp", "use_cache"),
    *("summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj"),  # of a head not built here
    "reorder_and_upcast_attn",  # the operator does so always
    *("_name_or_path", "chunk_size_feed_forward", "dtype", "is_encoder_decoder", "model_type", "transformers_version"),
    *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}


class Recording(dict):
    """Values that note which of them are asked for."""

    def __init__(self, values):
        super().__init__(values)
        self.asked = set()

    def get(self, key, default=None):
        self.asked.add(key)
        return super().get(key, default)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_field_that_changes_the_result_is_read(family):
    """Fields of the published configuration are read, refused, or known to change nothing."""
    asked, fields = set(), set()
    for shape, make_config, values in TEXT.values():
        if make_config.model_type == family:
            made_config = json.loads(make_config(**values).to_json_string(use_diff=False))
            recording = Recording(made_config | {"architectures": [shape.__name__]})
            FAMILIES[family].configure(Published("config.json", recording))
            asked |= recording.asked
            fields |= made_config.keys()
    assert fields, "no case of this family"
    assert fields - asked - HARMLESS == set()
