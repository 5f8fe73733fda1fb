"""What the integration promises beside equal logits: names, explanations, masks that users give, no silent loss."""

import copy
import pickle

import pytest
import torch
import transformers
from support.families import DECODERS, ENCODER_DECODERS, ENCODERS

import limelight
from limelight import BackendError, Observe
from limelight.integrations.transformers import account, enable, report

TOKENS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(2))


def built(name):
    model = (DECODERS | ENCODERS | ENCODER_DECODERS)[name].build()
    model.set_attn_implementation("limelight")
    return model


def both(model, **arguments):
    found = []
    for implementation in ("eager", "limelight"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found.append(model(**arguments)[0])
    return found


def test_from_pretrained(tmp_path):
    DECODERS["llama"].build().save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="limelight")
    with account() as calls, torch.no_grad():
        model(TOKENS)
    assert calls.taken == {"Causal() under Aligned": 2}


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_copied_model_is_served_and_observed_as_the_first(name):
    enable()  # again: nothing changes
    model = built(name)
    arguments = {"decoder_input_ids": TOKENS[:, :5]} if name in ENCODER_DECODERS else {}
    found = []
    for one in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with account() as calls, limelight.watching(Observe(entropy=True)) as seen, torch.no_grad():
            logits = one(TOKENS, **arguments).logits
        found.append((logits, calls.taken, list(seen)))
    for logits, *others in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert others == [*found[0][1:]]


# --- Masks that users give -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_mask_with_four_dimensions(kind):
    """Added as eager adds it; a bool one is true where a query sees a key."""
    model = built("llama")
    seen = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(3)) < 0.6
    seen |= torch.eye(9, dtype=torch.bool)
    added = torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    eager, ours = both(model, input_ids=TOKENS, attention_mask=added)
    if kind == "bool":
        with torch.no_grad():
            ours = model(TOKENS, attention_mask=seen)[0]
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)


def test_packed_position_ids():
    model = built("mistral, window 4")
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    with account() as calls:
        eager, ours = both(model, input_ids=TOKENS[:1], position_ids=positions, use_cache=False)
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert list(calls.taken) == ["Window(back=3, ahead=None) & Causal() under Packed"]
    assert not calls.notes


def test_a_decoder_made_bidirectional():
    model = built("llama")
    causal = both(model, input_ids=TOKENS)[1]
    model.config.is_causal = False
    eager, ours = both(model, input_ids=TOKENS, use_cache=False)
    torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert (ours - causal).abs().max() > 0.1


def test_a_mask_of_whole_numbers_is_refused():
    module = built("llama").model.layers[0].self_attn
    attend = transformers.AttentionInterface()["limelight"]
    heads = torch.randn(1, 4, 3, 8)
    with pytest.raises(limelight.ArgumentError, match="`attention_mask` must be bool"):
        attend(module, heads, heads, heads, torch.ones(1, 1, 3, 3, dtype=torch.int64))


def test_compiled_and_exported():
    """A graph gets eager's mask, written out: rows of padding, which see nothing, average as they do there."""
    model = built("mistral, window 4")
    real = torch.ones(2, 9, dtype=torch.bool)
    real[1, :3] = False
    arguments = {"attention_mask": real.long(), "use_cache": False}
    with torch.no_grad():
        expected = model(TOKENS, **arguments).logits[real]
        compiled = torch.compile(model, fullgraph=True, backend="eager")(TOKENS, **arguments).logits[real]
        exported = torch.export.export(model, (TOKENS,), arguments).module()(TOKENS, **arguments).logits[real]
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(exported, expected, rtol=1e-4, atol=1e-5)


GENERATE = {
    "input_ids": TOKENS, "attention_mask": (torch.arange(9) >= torch.tensor([[0], [4]])).long(), "max_new_tokens": 5,
    "min_new_tokens": 5, "do_sample": False,
}  # fmt: skip


@pytest.mark.parametrize("dynamic", [False, None], ids=["static", "automatic"])
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_static_cache_is_compiled_once(name, dynamic):
    model, graphs = built(name), []

    def backend(graph, _, **__):
        graphs.append(graph)
        return graph.forward

    expected = model.generate(**GENERATE)
    torch.compiler.reset()
    config = transformers.CompileConfig(fullgraph=True, dynamic=dynamic, backend=backend)
    config._compile_all_devices = True
    found = model.generate(**GENERATE, cache_implementation="static", compile_config=config)
    assert torch.equal(found, expected)
    assert len(graphs) == 1


def test_a_static_cache_that_is_not_compiled_is_read_as_a_description():
    """Though its masks are numbers, for a graph; one that is modified is read as it is then."""
    model = built("llama")
    with account() as calls:
        found = model.generate(**GENERATE, cache_implementation="static")
    assert torch.equal(found, model.generate(**GENERATE))
    assert "all its pairs are read" not in str(calls)
    layer, heads = model.model.layers[0].self_attn, torch.randn(1, 4, 8, 8)
    attend = transformers.AttentionInterface()["limelight"]
    mask = transformers.AttentionMaskInterface()["limelight"](1, 1, 8, torch.tensor(5))
    assert type(mask) is torch.Tensor
    for seen in (6, 3):
        mask[..., seen:] = torch.finfo(torch.float32).min
        found, _ = attend(layer, heads[:, :, :1], heads, heads, mask)
        expected, _ = attend(layer, heads[:, :, :1], heads[:, :, :seen], heads[:, :, :seen], None)
        torch.testing.assert_close(found, expected)


def test_an_account_of_a_compiled_model_is_empty_and_says_why():
    model = built("llama")
    with torch.no_grad(), account() as eager:
        expected = model(TOKENS).logits
    with torch.no_grad(), account() as calls:
        found = torch.compile(model, fullgraph=True, backend="eager")(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not calls.taken
    assert "torch.compile are not counted" in str(calls)
    assert "torch.compile" not in str(eager)


def test_a_compiled_model_is_not_observed():
    compiled = torch.compile(built("llama"), fullgraph=True, backend="eager")
    with limelight.watching(Observe(entropy=True)), pytest.raises(RuntimeError, match="does not see into"):
        compiled(TOKENS)


# --- Nothing lost in silence -----------------------------------------------------------------------------------------


def test_what_no_kernel_knows_is_refused():
    module = built("llama").model.layers[0].self_attn
    attend = transformers.AttentionInterface()["limelight"]
    heads = torch.randn(1, 4, 3, 8)
    for name in ("cache", "block_indices", "head_mask"):
        with pytest.raises(BackendError, match=f"cannot serve `{name}`"):
            attend(module, heads, heads, heads, None, **{name: torch.ones(1)})


def test_sinks_of_queries_are_not_observed():
    module = built("llama").model.layers[0].self_attn
    attend = transformers.AttentionInterface()["limelight"]
    heads = torch.randn(1, 4, 3, 8)
    with limelight.watching(Observe(entropy=True)), pytest.raises(BackendError, match="a sink for each query"):
        attend(module, heads, heads, heads, None, sinks=torch.ones(1, 4, 3, 1))


@pytest.mark.filterwarnings("ignore")
def test_a_recording_of_numbers_is_refused():
    with pytest.raises(BackendError, match=r"torch\.jit\.trace"):
        torch.jit.trace(built("bert"), (TOKENS,), strict=False)


def test_reports_a_family_outside_the_registry():
    config = transformers.DebertaV2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=60
    )
    model = transformers.DebertaV2Model(config)
    model.set_attn_implementation("limelight")
    reported = report(model)
    assert not reported.served
    assert set(reported.own) == {f"encoder.layer.{n}.attention.self" for n in range(2)}
    assert "computes 0 of 2" in str(reported)
    assert "DisentangledSelfAttention has attention of its own" in str(reported)


def test_reports_another_implementation():
    model = built("t5")
    assert len(report(model).served) == 6
    assert str(report(model)) == "Limelight computes 6 of 6 attention layers."
    model.set_attn_implementation("sdpa")
    assert "set_attn_implementation('limelight')" in str(report(model))


def test_reports_on_models_alone():
    with pytest.raises(limelight.ArgumentError, match="`model` must be a model"):
        report("meta-llama/Llama-3")


def test_an_account_has_one_line_for_what_is_asked_again():
    """However long the text has become meanwhile."""
    model = built("t5")
    with account() as calls:
        model.generate(TOKENS[:1], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert set(calls.taken) == {
        "Full() under Aligned, RelativeBias()", "Causal() under Aligned, RelativeBias()", "Full() under Aligned, Bias()"
    }  # fmt: skip


def test_account_says_what_was_read_pair_by_pair():
    model = built("doge")  # adds to its mask what it computes from the values
    with account() as calls, torch.no_grad():
        model(TOKENS)
    assert "a torch.float32 tensor instead of a description" in str(calls)
    assert list(calls.taken) == ["Full() under Aligned, Bias()"]


def test_a_mask_of_two_numbers_is_read_as_one_of_two_values():
    """Joined, cut or filled by a model, a mask still holds visibility alone: it becomes a pattern, not a bias."""
    model = built("deepseek_v32")
    with account() as calls, torch.no_grad():
        model(TOKENS)
    assert list(calls.taken) == ["Causal() & Explicit() under Aligned"]
    lengths = torch.where(torch.arange(9) < torch.tensor([[9], [4]]), 0.0, -torch.inf)
    with account() as calls, torch.no_grad():
        built("bert")(TOKENS, attention_mask=lengths[:, None, None])
    assert list(calls.taken) == ["Full() under KeyMask"]
    half = torch.where(torch.ones(9, 9).tril() == 1, 0.0, -torch.inf)
    with account() as calls, torch.no_grad():
        built("llama")(TOKENS, attention_mask=half[None, None])
    assert list(calls.taken) == ["Explicit() under Aligned"]


# --- Observations ----------------------------------------------------------------------------------------------------


def test_watching_a_decoder():
    model = built("gemma2")
    with limelight.watching(Observe(entropy=True, top=1)) as seen, torch.no_grad():
        model(TOKENS)
    assert list(seen) == [f"model.layers.{n}.self_attn" for n in range(2)]
    assert seen["model.layers.1.self_attn"].entropy.shape == (2, 4, 9)


def test_watching_tells_encoder_decoder_and_cross_apart():
    model = built("bart")
    with limelight.watching(Observe(max_weight=True)) as seen, torch.no_grad():
        model(TOKENS, decoder_input_ids=TOKENS[:, :5])
    assert set(seen) == {
        f"model.{part}.layers.{n}.{which}"
        for n in range(2)
        for part, which in (("encoder", "self_attn"), ("decoder", "self_attn"), ("decoder", "encoder_attn"))
    }
    assert seen["model.decoder.layers.0.encoder_attn"].max_weight.shape == (2, 2, 5)


def test_watching_a_model_inside_a_model():
    class Around(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = built("bert")

        def forward(self, tokens):
            return self.body(tokens)[0]

    with limelight.watching(Observe(max_weight=True)) as seen, torch.no_grad():
        Around()(TOKENS)
    assert list(seen) == [f"body.bert.encoder.layer.{n}.attention.self" for n in range(2)]


def test_observed_weights_are_those_of_eager():
    model = built("gpt_oss, sinks")
    with limelight.watching(Observe(rows=range(9))) as seen, torch.no_grad():
        model(TOKENS)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(TOKENS, output_attentions=True).attentions
    for layer, expected in enumerate(weights):
        torch.testing.assert_close(seen[f"model.layers.{layer}.self_attn"].rows, expected, rtol=1e-4, atol=1e-5)


# --- T5's position bias ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t5", "umt5", "mt5"])
def test_position_bias_by_distance(name):
    """No table of all pairs: the encoder's and the decoder's own attention read one number for each distance."""
    model = built(name)
    with account() as calls, torch.no_grad():
        model(TOKENS, decoder_input_ids=TOKENS[:, :5])
    by_distance = sum(n for what, n in calls.taken.items() if "RelativeBias" in what)
    assert by_distance == 4
    assert calls.taken.total() == 6


def test_position_bias_of_a_long_text_is_not_written_out(monkeypatch):
    from transformers.models.t5.modeling_t5 import T5Attention

    model = built("t5").encoder
    longest = []
    bucket = T5Attention._relative_position_bucket

    def counting(distance, **settings):
        longest.append(distance.numel())
        return bucket(distance, **settings)

    monkeypatch.setattr(T5Attention, "_relative_position_bucket", staticmethod(counting))
    tokens = torch.randint(3, 60, (1, 700), generator=torch.Generator().manual_seed(3))
    eager, ours = both(model, input_ids=tokens)
    torch.testing.assert_close(ours, eager, rtol=1e-3, atol=1e-4)
    assert max(longest[:1]) == 700 * 700  # eager
    assert max(longest[1:]) == 2 * 700 - 1


def test_position_bias_is_written_out_for_who_computes_with_it():
    """With its gradient, at the positions of a cache; eager is left as it was."""
    model = built("t5")
    with torch.no_grad():
        model(TOKENS, decoder_input_ids=TOKENS[:, :5])  # a family is known from its first mask on
    attention = model.decoder.block[0].layer[0].SelfAttention
    unwritten = attention.compute_bias(3, 9, past_seen_tokens=6)
    model.set_attn_implementation("eager")
    written = attention.compute_bias(3, 9, past_seen_tokens=6)
    assert type(written) is torch.Tensor
    assert (unwritten.shape, unwritten.dtype, unwritten.ndim) == (written.shape, written.dtype, 4)
    assert torch.equal(unwritten + 0, written)
    table = attention.relative_attention_bias.weight
    found, expected = (torch.autograd.grad((bias * 2).square().sum(), table)[0] for bias in (unwritten, written))
    assert torch.equal(found, expected)
    rule = unwritten.rule()
    distance = torch.arange(9) - (6 + torch.arange(3))[:, None]
    assert torch.equal(rule.table[:, rule.buckets(distance)], written[0])
