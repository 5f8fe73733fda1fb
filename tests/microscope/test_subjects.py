"""Models of transformers as subjects: what is observed of them, beside what they say of themselves."""

import copy
import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from support.families import DECODERS, ENCODER_DECODERS, ENCODERS
from support.observed import drawn, eager, largest_error, observed

import limelight
from limelight import ArgumentError, Observe
from limelight.microscope import look
from limelight.microscope.subjects import PretrainedSubject, subject_of
from limelight.microscope.subjects.transformers import TransformersSubject
from limelight.text import Text

TEXTS = DECODERS | ENCODERS
COMPARED = [
    "gpt2", "gpt_neox", "opt", "biogpt", "llama", "mistral, window 4", "mixtral", "gemma2", "gemma3", "qwen3", "phi3",
    "cohere2", "gpt_oss, sinks", "deepseek_v3", "modernbert_decoder", "bert", "roberta", "distilbert", "albert",
    "electra", "modernbert", "esm", "clip text",
]  # fmt: skip
COMPARED_PAIRS = ["bart", "marian", "pegasus", "t5", "t5gemma", "m2m_100"]
LENGTH, SOURCE = 11, 7


# --- Equal to eager --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMPARED)
def test_weights_are_those_of_eager(name):
    model = TEXTS[name].build()
    subject = TransformersSubject(model)
    ids = drawn(2, LENGTH)
    theirs = eager(model, {"input_ids": ids})
    assert largest_error(observed(subject, ids), subject.attention_names, theirs) < 1e-5
    assert model.config._attn_implementation == "eager"
    lengths = torch.tensor([LENGTH, 6])
    real = torch.arange(LENGTH) < lengths[:, None]
    theirs = eager(model, {"input_ids": ids, "attention_mask": real.long()})
    seen = observed(subject, ids, lengths=lengths)
    assert largest_error(seen, subject.attention_names, theirs, real) < 1e-5


@pytest.mark.parametrize("name", COMPARED_PAIRS)
def test_weights_of_both_stacks_and_between_them_are_those_of_eager(name):
    model = ENCODER_DECODERS[name].build()
    subject = TransformersSubject(model)
    ids, source = drawn(2, LENGTH), drawn(2, SOURCE, 1)
    seen = observed(subject, ids, source=source)
    inputs = {"input_ids": source, "decoder_input_ids": ids}
    for names, kind in (
        (subject.encoder_names, "encoder_attentions"),
        (subject.attention_names, "decoder_attentions"),
        (subject.cross_names, "cross_attentions"),
    ):
        assert largest_error(seen, names, eager(model, inputs, kind)) < 1e-5


# --- What a subject says of a model ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "gemma2", "cohere", "granite", "llama4, chunks of 4", "bert",
                                  "albert", "distilbert", "modernbert", "t5", "bart", "switch", "jamba"])  # fmt: skip
def test_the_lens_at_the_end_gives_the_logits(name):
    model = (TEXTS | ENCODER_DECODERS)[name].build()
    subject = TransformersSubject(model)
    source = drawn(1, SOURCE, 1) if subject.kind == "encoder-decoder" else None
    run = subject.run(drawn(1, LENGTH), source=source, hidden=True, logits=True)
    assert len(run.hidden) == subject.layers + 1
    torch.testing.assert_close(subject.lens(run.hidden[-1], subject.layers), run.logits)
    assert subject.lens(run.hidden[0][0], 0).shape == (LENGTH, 60)
    alone = subject.run(drawn(1, LENGTH), source=source, hidden=True)
    assert alone.logits is None
    for states, others in zip(alone.hidden, run.hidden, strict=True):
        torch.testing.assert_close(states, others)


@pytest.mark.parametrize("name", ["gpt2", "llama", "deepseek_v3", "bert", "albert", "t5", "gpt_neox"])
def test_the_output_weight_is_what_the_heads_pass_through(name):
    """What the layer adds is the sum over its heads, and the bias."""
    model = (TEXTS | ENCODER_DECODERS)[name].build()
    subject = TransformersSubject(model)
    parts, given = {}, {}

    class Mixed(limelight.Seen):
        def replace(self, name, query, key, value, output):
            weight = subject.output_weight(name)
            parts[name] = torch.einsum("bhld,hdw->blw", output, weight)
            return output

    projections = dict(zip(subject._found.names, (call.projection for call in subject._found.calls), strict=True))

    def keep(name):
        def hook(module, _, output):
            given.setdefault(name, (module, output))

        return hook

    hooks = [projection.register_forward_hook(keep(name)) for name, projection in projections.items()]
    source = drawn(1, SOURCE, 1) if subject.kind == "encoder-decoder" else None
    with limelight.watching(Mixed(Observe())):
        subject.run(drawn(1, LENGTH), source=source)
    for hook in hooks:
        hook.remove()
    assert set(parts) == set(subject._found.names)
    for layer, (module, output) in given.items():
        if not layer.endswith("[1]"):  # of two layers of ALBERT, which share a projection, the first was kept
            bias = 0 if module.bias is None else module.bias
            torch.testing.assert_close(parts[layer] + bias, output.reshape(parts[layer].shape), rtol=1e-4, atol=1e-5)


def test_layers_without_attention_are_counted_with_the_layer_before():
    for name in ("jamba", "lfm2", "qwen3_next"):
        subject = TransformersSubject(DECODERS[name].build())
        assert (subject.layers, subject.blocks) == (1, 2)
        assert subject.attention_names == ("layers.1.self_attn",)
    with pytest.raises(ArgumentError, match="an output projection"):  # gated in between
        subject.output_weight("layers.1.self_attn")


def test_layers_that_share_a_module_have_names_of_their_own():
    subject = TransformersSubject(ENCODERS["albert"].build())
    layer = "encoder.albert_layer_groups.0.albert_layers.0.attention"
    assert subject.attention_names == (f"{layer}[0]", f"{layer}[1]")


def test_kinds_and_positions():
    found = {name: TransformersSubject((TEXTS | ENCODER_DECODERS)[name].build()) for name in
             ("llama", "gpt2", "bert", "roberta", "bart", "clip text")}  # fmt: skip
    kinds = {name: (subject.kind, subject.limit) for name, subject in found.items()}
    assert kinds == {
        "llama": ("decoder", None), "gpt2": ("decoder", 64), "bert": ("encoder", 64), "roberta": ("encoder", 63),
        "bart": ("encoder-decoder", 64), "clip text": ("decoder", 64),
    }  # fmt: skip
    assert (found["bart"].heads, found["llama"].heads) == (2, 4)
    with pytest.raises(ArgumentError, match="64 positions"):
        found["bert"].run(drawn(1, 65))


def test_a_run_leaves_the_model_as_it_was():
    model = ENCODERS["bert"].build().train()
    model.bert.encoder.layer[0].eval()
    model.set_attn_implementation("sdpa")
    model(drawn(1, 4), output_hidden_states=True)  # transformers itself leaves hooks behind
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
    before = {name: module.training for name, module in model.named_modules()}
    subject = TransformersSubject(model)
    subject.run(drawn(1, 4))
    with pytest.raises(IndexError):
        subject.run(torch.tensor([[1000]]))
    with pytest.raises(RuntimeError, match="stop"), limelight.watching(Stopping(Observe())):
        subject.run(drawn(1, 4))
    subject.lens(torch.randn(3, 32), 1)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert model.config._attn_implementation == "sdpa"
    assert "forward" not in vars(model.bert)
    assert sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()) == hooks
    model(drawn(1, 4)).logits.sum().backward()


class Stopping(limelight.Seen):
    def add(self, name, observations):
        raise RuntimeError("stop")


# --- What cannot be observed -----------------------------------------------------------------------------------------

SMALL = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (transformers.DebertaV2Config(**SMALL, intermediate_size=32), "DebertaV2Model"),
        (transformers.BloomConfig(vocab_size=60, hidden_size=32, n_layer=2, n_head=4), "BloomForCausalLM"),
        (transformers.FalconConfig(**SMALL), "FalconForCausalLM"),
        (transformers.GPTJConfig(vocab_size=60, n_embd=32, n_layer=1, n_head=4, rotary_dim=4), "GPTJForCausalLM"),
        (transformers.MambaConfig(vocab_size=60, hidden_size=32, num_hidden_layers=1), "MambaForCausalLM"),
    ],
)
def test_a_model_outside_the_registry_is_refused_with_the_reason(config, kind):
    model = getattr(transformers, kind)(config)
    with pytest.raises(ArgumentError, match=r"`model` must have attention that can be observed.*(outside|no layer)"):
        TransformersSubject(model)


def test_sinks_of_queries_are_refused():
    with pytest.raises(ArgumentError, match="a sink for each query"):
        TransformersSubject(DECODERS["inkling2, sinks of queries"].build())


def test_layers_of_their_own_are_named():
    subject = TransformersSubject(ENCODER_DECODERS["longt5"].build())
    assert subject.encoder_names == ()
    assert "LongT5LocalAttention has attention of its own" in next(iter(subject.unobserved.values()))
    assert len(subject.cross_names) == 2


# --- Texts -----------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "bank", "is", "near", "river", "##s", ".", "a"]


@pytest.fixture(scope="module")
def bert_tokenizer():
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    return transformers.BertTokenizer(vocab=vocabulary)


def test_spans_and_special_tokens(bert_tokenizer):
    subject = subject_of((ENCODERS["bert"].build(), bert_tokenizer))
    text = subject.tokenize("The rivers. 🌊 [SEP]")
    assert text.tokens == ("[CLS]", "the", "river", "##s", ".", "[UNK]", "[SEP]", "[SEP]")
    assert text.pieces[1:6] == ("The", "river", "s", ".", "🌊")
    assert text.special == (True, False, False, False, False, True, True, True)
    assert subject.unknown_token == "[UNK]"
    with pytest.raises(ArgumentError, match="half of a surrogate pair"):
        subject.tokenize("\ud800")


def test_spans_of_a_tokenizer_that_does_not_say_them():
    class Slow:
        is_fast, all_special_ids, unk_token = False, [0], None

        def __call__(self, text, **_):
            return {"input_ids": [0, 1, 2, 3, 4]}

        def convert_ids_to_tokens(self, ids):
            return ["<s>", "▁the", "▁Riv", "ers</w>", "##?"]

    text = subject_of(ENCODERS["bert"].build(), tokenizer=Slow()).tokenize("The rivers.")
    assert text.spans == ((0, 0), (0, 3), (4, 7), (7, 10), (10, 10))
    assert text.pieces[1:4] == ("The", "riv", "ers")


def test_a_tokenizer_of_another_model_is_refused(bert_tokenizer):
    small = transformers.BertModel(transformers.BertConfig(**SMALL | {"vocab_size": 8}, intermediate_size=32))
    subject = subject_of(small, tokenizer=bert_tokenizer)
    with pytest.raises(ArgumentError, match=r"`tokenizer` must fit the model .* 0 to 7.* 'river' has the id 8"):
        subject.tokenize("the river")
    with pytest.raises(ArgumentError, match="`tokenizer` must come with the model"):
        subject_of(small).tokenize("the river")
    with pytest.raises(ArgumentError, match=r"`tokenizer` must come with the model .* came with 42"):
        subject_of((small, 42)).tokenize("the river")
    with pytest.raises(ArgumentError, match="`tokenizer` belongs to a model of transformers"):
        subject_of("minilm", tokenizer=bert_tokenizer)


# --- look ------------------------------------------------------------------------------------------------------------


def test_look_at_a_model_of_transformers(bert_tokenizer):
    model = ENCODERS["bert"].build()
    model.name_or_path = "a \x1b[2J\u202ename\n<script>"
    report = look(model, "The bank is near the rivers.", tokenizer=bert_tokenizer, words=["bank"])
    assert report.model.kind == "encoder"
    assert report.model.name == "a ␛[2J<U+202E>name <script>"
    assert report.readings[0].words[5].text == "rivers"
    ids = torch.tensor([subject_of((model, bert_tokenizer)).tokenize("The bank is near the rivers.").ids])
    weights = torch.stack(eager(model, {"input_ids": ids}))[:, 0]
    torch.testing.assert_close(torch.from_numpy(report.readings[0].shares), weights, rtol=0, atol=1e-5)
    assert look((model, bert_tokenizer), "bank", compare="the bank").comparison is not None
    for text in ("", "  "):
        with pytest.raises(ArgumentError, match="at least one word"):
            look((model, bert_tokenizer), text)
    with pytest.raises(ArgumentError, match="64 positions"):
        look((model, bert_tokenizer), "river " * 80)
    assert look((model, bert_tokenizer), "🌊").warnings


def test_heads_take_a_tokenizer_as_look_does(bert_tokenizer):
    model = ENCODERS["bert"].build()
    for how in ({"model": model, "tokenizer": bert_tokenizer}, {"model": (model, bert_tokenizer)}):
        with pytest.raises(ArgumentError, match="no text of a text has 8 tokens"):
            limelight.heads(corpus="the bank.", **how)
    with pytest.raises(ArgumentError, match="`tokenizer` must come with the model"):
        limelight.heads(model, "the bank.")


def test_a_folder_of_another_family(tmp_path, bert_tokenizer):
    """Opened by transformers, without code of the folder's own."""
    model = ENCODERS["electra"].build()
    model.save_pretrained(tmp_path)
    bert_tokenizer.save_pretrained(tmp_path)
    report = look(str(tmp_path), "The bank is near the river.")
    assert report.model.name == str(tmp_path)
    assert report.model.kind == "encoder"
    with pytest.raises(ArgumentError, match=r"builds the families .*limelight look"):
        limelight.load(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change in (
        {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config"}},
        {"num_hidden_layers": 5},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ArgumentError, match=r"cannot open it|lacks weights"):
            look(str(tmp_path), "The bank.")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ArgumentError, match="cannot open it"):
        look(str(tmp_path), "The bank.")


def test_our_own_models_are_subjects(minilm):
    subject = subject_of(minilm)
    assert isinstance(subject, PretrainedSubject)
    assert subject_of(subject) is subject
    ids = torch.tensor([subject.tokenize("The bank is near the river.").ids] * 2)
    whole, padded = (subject.run(ids, lengths=n, hidden=True).hidden[-1] for n in (None, torch.tensor([9, 5])))
    torch.testing.assert_close(whole[0], padded[0])
    short = subject.run(ids[:1, :5], hidden=True).hidden[-1]
    torch.testing.assert_close(padded[1:, :5], short, rtol=1e-4, atol=1e-5)


def test_byte_level_tokenizers_have_no_unknown_token():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "<s>": 2}, []))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<s>")
    assert subject_of(DECODERS["llama"].build(), tokenizer=fast).unknown_token is None


def test_layers_may_have_different_numbers_of_heads():
    model = DECODERS["gpt2"].build()
    config = copy.deepcopy(model.config)
    config.n_head = 2
    other = type(model.transformer.h[1].attn)(config, layer_idx=1)
    other.load_state_dict(model.transformer.h[1].attn.state_dict())
    other.config = model.config  # says which attention is computed
    model.transformer.h[1].attn = other.eval()
    subject = TransformersSubject(model)
    assert (subject.layers, subject.heads) == (2, 4)
    shapes = {name: tuple(subject.output_weight(name).shape) for name in subject.attention_names}
    assert shapes == {"h.0.attn": (4, 8, 32), "h.1.attn": (2, 16, 32)}
    text = Text("a b c d e", (3, 4, 5, 6, 7), tuple("abcde"), ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)), (0, 1, 2, 3, 4),
                (False,) * 5)  # fmt: skip
    subject.tokenize = lambda _: text
    shares = look(subject, "a b c d e").readings[0].shares
    theirs = eager(model, {"input_ids": torch.tensor([text.ids])})
    np.testing.assert_allclose(shares[0], theirs[0][0], atol=1e-5)
    np.testing.assert_allclose(shares[1, :2], theirs[1][0], atol=1e-5)
    assert not shares[1, 2:].any()


def test_one_token():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    report = look(DECODERS["llama"].build(), "a", tokenizer=fast)
    assert [row["token"] for row in report.tables["tokens"]] == ["a"]
    assert report.readings[0].shares.tolist() == [[[[1.0]]] * 4] * 2
    with pytest.raises(ArgumentError, match="must hold at least one word"):
        look(DECODERS["llama"].build(), "", tokenizer=fast)
    with pytest.raises(ArgumentError, match="must make at least one token"):
        look(DECODERS["llama"].build(), "xyz", tokenizer=fast)
