"""Every family on small random models: equal to transformers, saved and read by transformers, field by field."""

import json
from copy import deepcopy

import pytest
import torch
from support.agreement import assert_equal, assert_no_worse, float64_throughout
from support.peers import EVERY, FACTORS, FIRST_WORD, PAIRS, PICTURES, TEXT, given, made, takes_positions

from limelight import ArgumentError, Padded
from limelight.checkpoints.load import load
from limelight.models.families import FAMILIES, Published
from limelight.nn import Cache


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A model of transformers and the folder it was saved in, each made once; who changes it takes a copy."""
    kept = {}

    def get(name):
        if name not in kept:
            kept[name] = made(name), tmp_path_factory.mktemp(name)
            kept[name][0].save_pretrained(kept[name][1])
        return kept[name]

    return get


def compared(name, ours, theirs, side="right"):
    """Pairs of tensors that should be equal, at tokens that exist."""
    inputs, more, how, exists, heard = given(name, theirs, side)
    mine, other = ours.network(*inputs, **more, hidden=True), theirs(**how, output_hidden_states=True)
    if name in PAIRS:
        pairs = [(a[heard], b[heard]) for a, b in zip(mine.encoded.hidden, other.encoder_hidden_states, strict=True)]
        pairs += [(a[exists], b[exists]) for a, b in zip(mine.hidden, other.decoder_hidden_states, strict=True)]
    else:
        exists = slice(None) if exists is None else exists
        # a ViT of transformers keeps its states as they are before the last norm
        pairs = [(a[exists], b[exists]) for a, b in zip(mine.hidden, other.hidden_states, strict=True)]
        if name in PICTURES:
            pairs.pop()
            if mine.logits is None:
                pairs.append((mine.states, other.last_hidden_state))
    if mine.logits is not None:
        per_text = mine.logits.dim() == 2
        pairs.append((mine.logits, other.logits) if per_text else (mine.logits[exists], other.logits[exists]))
    return pairs


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", EVERY)
def test_equal_to_transformers(stored, name, side):
    theirs, folder = stored(name)
    places = name in TEXT and takes_positions(theirs) and not name.endswith("-classes")
    if side == "left" and not (places or name.startswith("t5")):
        side = "right"  # it has no places of its own, or reads its first column whatever that is
    ours = load(folder, dtype=torch.float64)
    with float64_throughout(theirs):
        for mine, other in compared(name, ours, theirs, side):
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
    assert (ours.config.limit, ours.config.cached_limit) == (24, 8)
    assert [(len(row.ids), row.ended) for row in ours.generate([[5, 6, 7]], tokens=None)] == [(6, "positions")]
    with pytest.raises(
        ArgumentError, match=r"`tokens` must fit into the 8 positions .* change the rotation of cached keys"
    ):
        ours.generate([[5, 6, 7]], tokens=7)
    assert FAMILIES["llama"].publish(ours.config)["max_position_embeddings"] == 8
    ids = torch.arange(22).reshape(2, 11)
    for length in (7, 11):
        with float64_throughout(theirs):
            assert_equal(ours(ids[:, :length]).logits, theirs(ids[:, :length]).logits)


def test_longrope_that_depends_on_the_length(tmp_path):
    """Beyond the original length the long factors hold; older files have other names and places for them."""
    rope = {"rope_theta": 500.0, **FACTORS, "original_max_position_embeddings": 9, "factor": 4.0}
    shape, make_config, values = TEXT["phi3"]
    values = values | {"original_max_position_embeddings": 9, "rope_parameters": rope | {"rope_type": "longrope"}}
    theirs = made("long", {"long": (shape, make_config, values)})
    theirs.save_pretrained(tmp_path)
    ids = torch.arange(22).reshape(2, 11)
    written = json.loads((tmp_path / "config.json").read_text())
    older = {key: value for key, value in written.items() if key != "rope_parameters"} | {"rope_theta": 500.0}
    for kind in (None, "longrope", "su", "yarn"):
        if kind is not None:
            (tmp_path / "config.json").write_text(json.dumps(older | {"rope_scaling": rope | {"type": kind}}))
        ours = load(tmp_path, dtype=torch.float64)
        assert (ours.config.limit, ours.config.cached_limit) == (64, 9)
        for length in (7, 9, 10, 11):
            with float64_throughout(theirs):
                assert_equal(ours(ids[:, :length]).logits, theirs(ids[:, :length]).logits)
    together = ours(ids, layout=Padded(torch.tensor([8, 11]))).logits
    assert_equal(together[:1, :8], ours(ids[:1, :8]).logits)  # each text decides for itself


CACHED = [name for name in (*TEXT, *PAIRS) if not name.startswith(("bert", "roberta", "distilbert", "albert"))]


@pytest.mark.parametrize("name", CACHED)
def test_token_by_token(stored, name):
    """With a cache, in pieces of any size, as at once."""
    theirs, folder = stored(name)
    network = load(folder, dtype=torch.float64).network
    (ids,), more, _, _, _ = given(name, theirs)
    ids = ids[:, :9].clamp(min=FIRST_WORD)  # all of them exist here
    read = {"source": network.encode(more["source"], layout=more.get("source_layout"))} if name in PAIRS else {}
    whole, cache = network(ids, **read), Cache()
    parts = [network(piece, **read, cache=cache).states for piece in ids.split((4, 1, 1, 3), dim=1)]
    assert_equal(torch.cat(parts, dim=1), whole.states)


@pytest.mark.parametrize("name", EVERY)
def test_no_worse_than_transformers_in_float32(stored, name):
    theirs, folder = stored(name)
    theirs, ours = deepcopy(theirs).to(torch.float32), load(folder)
    narrow = compared(name, ours, theirs)
    with float64_throughout(theirs):
        wide = compared(name, ours.to(torch.float64), theirs.to(torch.float64))
    for (mine, eager), (_, truth) in zip(narrow, wide, strict=True):
        assert_no_worse(mine, eager, truth)


@pytest.mark.parametrize("name", EVERY)
def test_saved_for_transformers(stored, tmp_path, name):
    theirs, folder = stored(name)
    ours = load(folder, dtype=torch.float64)
    ours.save(tmp_path / "ours")
    again, report = type(theirs).from_pretrained(tmp_path / "ours", dtype="auto", output_loading_info=True)
    # tensors that we leave unused are not in the file; transformers initialises them
    assert {key.split(".", 1)[-1] for key in report["missing_keys"]} <= {
        key.split(".", 1)[-1] for key, _ in ours.unused
    }
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    again.set_attn_implementation("eager")
    if "mixtral" in name:
        again.set_experts_implementation("eager")
    for key, values in theirs.named_parameters():
        if key.endswith("embed_positions.weight") and "marian" in name:  # rounded by transformers when they are made
            again.get_parameter(key).data = values.data
    _, _, how, exists, _ = given(name, theirs)
    with float64_throughout(theirs, again):
        before, after = theirs(**how), again.eval()(**how)
    one, other = (out.logits if ours.network.head is not None else out.last_hidden_state for out in (before, after))
    exists = slice(None) if exists is None or one.dim() == 2 else exists
    # Not to the bit: MKL's sums depend on where in memory a matrix lies.
    torch.testing.assert_close(other[exists], one[exists], rtol=0, atol=1e-13 * float(one[exists].abs().max()))


@pytest.mark.parametrize("name", EVERY)
def test_a_configuration_there_and_back(tmp_path, name):
    shape, make_config, values = EVERY[name]
    make_config(**values).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text()) | {"architectures": [shape.__name__]}
    family = FAMILIES[values["model_type"]]
    config = family.configure(Published("config.json", values))
    message = json.loads(json.dumps(family.publish(config)))
    assert family.configure(Published("config.json", message | family_special_tokens(values))) == config
    assert message["architectures"] == [shape.__name__]


def family_special_tokens(values):
    return Published("config.json", values).special_token_ids()


MASKS = ("prob", "length", "min_masks")  # of a sound, in training

# What changes no output of a model in use: training, bookkeeping, how transformers runs, and what generation decides.
HARMLESS = {
    *("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "qa_dropout", "summary_first_dropout"),
    *("initializer_range", "sinusoidal_pos_embds", "problem_type", "pretraining_tp", "use_cache"),
    *("summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj"),  # of a head not built here
    "reorder_and_upcast_attn",  # the operator does so always
    *("_name_or_path", "chunk_size_feed_forward", "dtype", "is_encoder_decoder", "model_type", "transformers_version"),
    *("output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id"),
    *("encoder_layerdrop", "decoder_layerdrop", "init_std", "initializer_factor"),
    *("output_router_logits", "median_filter_width", "classifier_proj_size", "encoder_stride"),
    *("pooler_act", "pooler_output_size"),  # of a vector that is not made here
    *("apply_spec_augment", *(f"mask_{what}_{how}" for what in ("time", "feature") for how in MASKS)),
    *("bos_token_id", "eos_token_id", "pad_token_id", "forced_eos_token_id", "decoder_start_token_id"),
    *("suppress_tokens", "begin_suppress_tokens"),
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
    for shape, make_config, values in EVERY.values():
        if make_config.model_type == family:
            made_config = json.loads(make_config(**values).to_json_string(use_diff=False))
            recording = Recording(made_config | {"architectures": [shape.__name__]})
            FAMILIES[family].configure(Published("config.json", recording))
            asked |= recording.asked
            fields |= made_config.keys()
    assert fields, "no case of this family"
    assert fields - asked - HARMLESS == set()
