"""What small random models write: as without a cache, as in transformers, whatever stands beside it."""

import dataclasses
import json

import pytest
import tokenizers
import torch
from support.agreement import float64_throughout
from support.peers import FIRST_WORD, LENGTHS, made
from tokenizers import decoders, models, pre_tokenizers

import limelight
from limelight import ArgumentError, Padded
from limelight.checkpoints.load import load
from limelight.generation import Beam, Greedy, Sample
from limelight.generation.session import Session
from limelight.nn import Adaptive, Keep, LastQueries, Pyramid, Received, Recency
from limelight.text import Tokenizer

TOKENS = 9
DECODERS = ["llama", "gpt2", "llama-yarn", "mistral", "qwen3-windows", "mixtral-window", "gemma2", "phi3"]
TRANSLATORS = ["t5-1.1", "bart", "bart-untied", "marian"]
PROMPTS = [torch.randint(FIRST_WORD, 50, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in LENGTHS]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Our model in float64 and theirs, made once."""
    kept = {}

    def both(name):
        if name not in kept:
            theirs, folder = made(name), tmp_path_factory.mktemp(name)
            theirs.save_pretrained(folder)
            ours = load(folder, dtype=torch.float64)
            kept[name] = dataclasses.replace(ours, special_token_ids={}), theirs, ours.special_token_ids
        return kept[name]

    return both


@pytest.fixture(scope="module")
def writer(pair):
    """A small Llama whose tokens are letters."""
    backend = tokenizers.Tokenizer(models.BPE({letter: n for n, letter in enumerate(LETTERS[:50])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return dataclasses.replace(pair("llama")[0], tokenizer_or_why=Tokenizer(backend))


def padded(side, pad=0):
    """The prompts as a tensor, and which tokens exist."""
    rows = [[*row, *[-1] * (max(LENGTHS) - len(row))] for row in PROMPTS]
    if side == "left":
        rows = [[*[-1] * (max(LENGTHS) - len(row)), *row] for row in PROMPTS]
    ids = torch.tensor(rows)
    return ids.where(ids >= 0, pad), ids >= 0


def target_of(theirs):
    return [[theirs.config.decoder_start_token_id]] if theirs.config.is_encoder_decoder else None


def step_by_step(model, prompt, target, tokens):
    """The most likely tokens, the whole text recomputed for each: no cache, no batch."""
    ids = torch.tensor([target[0] if target else prompt])
    begun, source = ids.shape[1], {"source": torch.tensor([prompt])} if target else {}
    with torch.no_grad():
        for _ in range(tokens):
            best = model.network(ids, **source).logits[:, -1:].argmax(-1)
            ids = torch.cat((ids, best), dim=1)
    return tuple(ids[0, begun:].tolist())


KEPT = {
    "recency": Keep(12, 2, 4, interval=1),
    "received": Keep(12, 2, 4, Received(), heads=Adaptive(), interval=2),
    "last queries": Keep(0.5, 1, 2, LastQueries(4, 3), Pyramid(3.0), Adaptive(), interval=3),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_budget_above_the_length_changes_nothing(pair, name):
    model, expected = pair(name)[0], None
    for by in (Received(), *((Recency(), LastQueries(8)) if name == "llama" else ())):
        keep = Keep(100, 2, 4, by)
        expected = expected or model.generate(PROMPTS, tokens=TOKENS).ids
        assert model.generate(PROMPTS, tokens=TOKENS, keep=keep).ids == expected


@pytest.mark.parametrize("kept", KEPT)
def test_texts_of_a_batch_do_not_depend_on_each_other_under_a_policy(pair, kept):
    model, how = pair("llama")[0], {"tokens": 20, "keep": KEPT[kept]}
    together = model.generate(PROMPTS, **how).ids
    assert together == tuple(model.generate(prompt, **how)[0].ids for prompt in PROMPTS)
    assert together != model.generate(PROMPTS, tokens=20).ids
    longest = max(PROMPTS, key=len)
    one = model.generate(longest, Sample(temperature=2.0), seed=3, copies=3, **how).ids
    assert len(set(one)) == 3
    beams = model.generate([longest, PROMPTS[0]], Beam(3), **how).ids
    assert beams[0] == model.generate(longest, Beam(3), **how)[0].ids


def test_a_policy_holds_for_the_text_that_a_decoder_writes(pair):
    model, theirs, _ = pair("bart")
    how = {"tokens": 16, "target": target_of(theirs)}
    keep = Keep(6, 1, 2, Received(), interval=1)
    together = model.generate(PROMPTS, keep=keep, **how).ids
    assert together == tuple(model.generate(prompt, keep=keep, **how)[0].ids for prompt in PROMPTS)
    with pytest.raises(ArgumentError, match="RelativeBias"):
        pair("t5-1.1")[0].generate(PROMPTS, tokens=3, target=[[0]], keep=Keep(8, 1, 3))


@pytest.mark.parametrize("name", [*DECODERS, *TRANSLATORS])
def test_as_without_a_cache_and_without_a_batch(pair, name):
    model, theirs, _ = pair(name)
    target = target_of(theirs)
    alone = tuple(step_by_step(model, prompt, target, TOKENS) for prompt in PROMPTS)
    assert model.generate(PROMPTS, tokens=TOKENS, target=target).ids == alone
    for side in ("left", "right"):
        ids, exists = padded(side)
        layout = Padded(exists.sum(-1), side=side)
        assert model.generate(ids, layout=layout, tokens=TOKENS, target=target).ids == alone


def test_sounds_are_written_down_as_without_a_cache(pair):
    model, _, _ = pair("whisper")
    sounds = torch.randn(2, 6, 20, dtype=torch.float64)
    found = model.generate(sounds, target=[[3, 9]], tokens=TOKENS)
    ids = torch.tensor([[3, 9], [3, 9]])
    with torch.no_grad():
        for _ in range(TOKENS):
            ids = torch.cat((ids, model.network(ids, source=sounds).logits[:, -1:].argmax(-1)), dim=1)
    assert found.ids == tuple(tuple(row) for row in ids[:, 2:].tolist())


def written_by_transformers(theirs, how):
    """What their `generate` adds to each prompt, up to the end-of-text token."""
    ids, exists = padded("left")
    begun = 1 if theirs.config.is_encoder_decoder else ids.shape[1]
    if theirs.config.is_encoder_decoder:
        ids, exists = padded("right", theirs.config.pad_token_id)
    found = theirs.generate(ids, attention_mask=exists.long(), do_sample=False, pad_token_id=0, **how)
    end = how["eos_token_id"]
    rows = [row[begun:] for row in found.tolist()]
    return tuple(tuple(row[: row.index(end) + 1] if end in row else row) for row in rows)


SAMPLERS = [
    (Greedy(), {}),
    (Greedy(repetition=1.7), {"repetition_penalty": 1.7}),
    (Beam(3), {"num_beams": 3}),
    (Beam(4, -1.0, repetition=1.2), {"num_beams": 4, "length_penalty": -1.0, "repetition_penalty": 1.2}),
    (Beam(2, length_penalty=2.5), {"num_beams": 2, "length_penalty": 2.5}),
]
COMPARED = [(name, *SAMPLERS[number]) for name in ("llama", "bart") for number in range(5)]
COMPARED += [(name, *SAMPLERS[number]) for name in (*DECODERS[2:], "t5-1.1", "marian") for number in (0, 2)]


@pytest.mark.parametrize(("name", "sampler", "how"), COMPARED, ids=str)
def test_token_for_token_as_transformers(pair, name, sampler, how):
    model, theirs, special = pair(name)
    target = target_of(theirs)
    end = step_by_step(model, PROMPTS[0], target, 4)[-1]
    wanted = {key: special[key] for key in ("forced_eos_token_id", "forced_bos_token_id") if key in special}
    model = dataclasses.replace(model, special_token_ids=wanted | {"eos_token_id": end})
    how = {"max_new_tokens": TOKENS, "eos_token_id": end, **how}
    if theirs.config.model_type == "t5":
        how["use_cache"] = False  # theirs has as many layers as the encoder, and fails when the decoder has more
    with float64_throughout(theirs):
        expected = written_by_transformers(theirs, how)
    found = model.generate(PROMPTS, sampler, tokens=TOKENS, target=target)
    assert found.ids == expected
    assert [row.ended for row in found] == ["token" if ids[-1] == end else "limit" for ids in expected]


def test_the_scores_of_a_beam(pair):
    model, _, _ = pair("llama")
    found = model.generate(PROMPTS[:1], Beam(3, length_penalty=0.5), tokens=5, copies=3, logprobs=True)
    assert [row.score for row in found] == sorted((row.score for row in found), reverse=True)
    assert len(set(found.ids)) == 3
    for row in found:
        assert row.score == pytest.approx(sum(row.logprobs) / len(row.ids) ** 0.5, abs=1e-12)
        with torch.no_grad():
            logits = model.network(torch.tensor([[*PROMPTS[0], *row.ids]])).logits[0].log_softmax(-1)
        expected = [logits[6 + n, token].item() for n, token in enumerate(row.ids)]
        assert row.logprobs == pytest.approx(expected, abs=1e-12)


def test_one_wide_beam_finds_the_best_of_all(pair):
    """A beam as wide as the vocabulary looks at every text of two tokens."""
    model, _, _ = pair("llama")
    found = model.generate([PROMPTS[1]], Beam(50, length_penalty=0.0), tokens=2)[0]
    with torch.no_grad():
        first = model.network(torch.tensor([PROMPTS[1]])).logits[0, -1].log_softmax(-1)
        pairs = torch.tensor([[*PROMPTS[1], token] for token in range(50)])
        second = model.network(pairs).logits[:, -1].log_softmax(-1)
    both = first[:, None] + second
    assert found.ids == divmod(int(both.argmax()), 50)
    assert found.score == pytest.approx(both.max().item(), abs=1e-12)


def test_the_same_seed_the_same_text(pair):
    model, _, _ = pair("mistral")
    sampler = Sample(temperature=1.5, top_p=0.95, repetition=1.1)
    together = model.generate(PROMPTS, sampler, seed=5, copies=3, tokens=TOKENS)
    assert len(set(together.ids)) == 9
    assert model.generate(PROMPTS, sampler, seed=5, copies=3, tokens=TOKENS) == together
    other_order = model.generate(PROMPTS[::-1], sampler, seed=5, copies=2, tokens=TOKENS).ids
    assert other_order == together.ids[6:8] + together.ids[3:5] + together.ids[:2]
    assert model.generate(PROMPTS[:1], sampler, seed=5, tokens=TOKENS).ids == together.ids[:1]
    assert model.generate(PROMPTS, sampler, seed=6, copies=3, tokens=TOKENS).ids != together.ids
    torch.manual_seed(0)
    drawn = [model.generate(PROMPTS, sampler, tokens=4).ids for _ in range(2)]
    torch.manual_seed(0)
    assert model.generate(PROMPTS, sampler, tokens=4).ids == drawn[0] != drawn[1]


def test_rows_that_end_leave_the_others_alone(pair):
    model, _, _ = pair("llama")
    plain = model.generate(PROMPTS, tokens=TOKENS, logprobs=True)
    ends = [plain.ids[0][2], plain.ids[1][5]]
    found = model.generate(PROMPTS, tokens=TOKENS, stop=ends, logprobs=True)
    for row, whole in zip(found, plain, strict=True):
        first = min((whole.ids.index(end) for end in ends if end in whole.ids), default=TOKENS - 1)
        assert row.ids == whole.ids[: first + 1]
        assert row.logprobs == pytest.approx(whole.logprobs[: first + 1], abs=1e-12)
        assert row.ended == ("token" if row.ids[-1] in ends else "limit")


def test_what_a_configuration_wants(pair):
    model, _, _ = pair("bart")
    plain = model.generate(PROMPTS, target=[[2]], tokens=4).ids
    special = {
        "decoder_start_token_id": 2,
        "suppress_tokens": [row[1] for row in plain],
        "begin_suppress_tokens": [row[0] for row in plain],
        "bad_words_ids": [[9]],
        "eos_token_id": [7],
        "forced_eos_token_id": 7,
    }
    wanting = dataclasses.replace(model, special_token_ids=special)
    found = wanting.generate(PROMPTS, tokens=4)
    for row in found:
        assert row.ids[0] not in special["begin_suppress_tokens"]
        assert not {*row.ids} & {*special["suppress_tokens"], 9}
        assert row.ids[-1] == 7
    begun = dataclasses.replace(model, special_token_ids=special | {"forced_bos_token_id": 11}).generate(
        PROMPTS, tokens=3
    )
    assert all(row.ids[0] == 11 for row in begun)
    forced = dataclasses.replace(
        model, special_token_ids={"decoder_start_token_id": 2, "forced_decoder_ids": [[2, 6], [1, 5]]}
    )
    assert forced.generate(PROMPTS, tokens=3).ids == model.generate(PROMPTS, target=[2, 5, 6], tokens=3).ids
    for wrongly in ({"forced_decoder_ids": [[1, None]]}, {"forced_decoder_ids": [[2, 3]]}):
        with pytest.raises(ArgumentError, match="`target` must say what the text begins with"):
            dataclasses.replace(model, special_token_ids=special | wrongly).generate(PROMPTS)


@pytest.mark.parametrize(("sampler", "how"), [(Greedy(), {}), (Beam(3), {"num_beams": 3})], ids=str)
def test_bad_words_of_several_tokens_as_transformers(pair, sampler, how):
    model, theirs, _ = pair("llama")
    plain = [row.ids for row in model.generate(PROMPTS, sampler, tokens=TOKENS)]
    words = [list(plain[0][2:4]), [PROMPTS[1][-1], plain[1][0]], list(plain[2][1:4]), [plain[2][5]], [7]]
    model = dataclasses.replace(model, special_token_ids={"bad_words_ids": words, "eos_token_id": 7})
    with float64_throughout(theirs):
        expected = written_by_transformers(
            theirs, {"max_new_tokens": TOKENS, "eos_token_id": 7, "bad_words_ids": words, **how}
        )
    found = model.generate(PROMPTS, sampler, tokens=TOKENS).ids
    assert found == expected
    assert [ids[:1] for ids in found] != [ids[:1] for ids in plain]  # the prompt's last token begins a word


def test_what_a_generation_config_says_comes_first(tmp_path):
    theirs = made("llama")
    theirs.generation_config.eos_token_id = [7, 9]
    theirs.save_pretrained(tmp_path)
    assert load(tmp_path).special_token_ids["eos_token_id"] == [7, 9]


def test_texts_pieces_and_stops(writer):
    whole = writer.generate("abc", tokens=12)
    assert whole.text == writer.tokenizer.write(whole[0].ids)
    assert whole[0].ended == "limit"
    assert writer.generate(["abc", "d"], tokens=12).texts[0] == whole.text
    assert writer.generate(writer.read("abc"), tokens=12) == whole
    assert writer.generate([0, 1, 2], tokens=12) == whole
    pieces = writer.stream("abc", tokens=12)
    assert "".join(pieces) == whole.text
    assert pieces.result == writer.generate("abc", tokens=12, logprobs=True)[0]
    stop = whole.text[4:7]
    place = whole.text.index(stop)
    for stops in (stop, ["zzz", stop]):
        cut = writer.generate("abc", tokens=12, stop=stops)
        assert cut.text == whole.text[:place]
        assert cut[0].ended == "string"
        assert len(cut[0].ids) == place + 3
        assert "".join(writer.stream("abc", tokens=12, stop=stops)) == cut.text
    end = writer.generate("abc", tokens=12, stop=whole[0].ids[5])[0]
    assert end.ended == "token"
    assert end.text == whole.text[: whole[0].ids.index(whole[0].ids[5])]
    beam = writer.generate("abc", Beam(3), tokens=12)
    cut = writer.generate("abc", Beam(3), tokens=12, stop=beam.text[:1])
    assert beam.text[:1] not in cut.text


def test_a_window_stays_bounded(pair):
    model, _, _ = pair("mistral")
    run, taken = Session(model.network), []
    run.read(PROMPTS)
    for _ in range(50):
        run.read([[5], [6], [7]])
        taken.append(run.cache.bytes)
    assert len(set(taken)) == 1


def test_the_positions_of_a_model_end(pair):
    model, _, _ = pair("gpt2")  # 24 of them
    with pytest.raises(
        ArgumentError, match=r"`tokens` must fit into the 24 positions .* 15 new tokens and a prompt of 11 do not"
    ):
        model.generate(PROMPTS, tokens=15)
    assert model.generate(PROMPTS, tokens=14).ids[2] == model.generate(PROMPTS[2:], tokens=None).ids[0]
    ends = model.generate(PROMPTS, tokens=None)
    assert [(len(row.ids), row.ended) for row in ends] == [(18, "positions"), (24, "positions"), (14, "positions")]
    with pytest.raises(ArgumentError, match="`prompt` must leave room in the 24 positions"):
        model.generate([list(range(25))])
    with pytest.raises(ArgumentError, match="`tokens` must be a number for a model without a limit"):
        pair("t5-1.1")[0].generate(PROMPTS, target=[0], tokens=None)


def test_what_cannot_be_meant(pair, writer):
    model, _, _ = pair("llama")
    bad = {
        "`tokenizer` must come with the checkpoint": lambda: model.generate("abc"),
        "`prompt` must be a text, several": lambda: model.generate({"a": 1}),
        r"`prompt` must be \(B, L\) int64": lambda: model.generate(torch.zeros(2, 3)),
        "`prompt` must have at least one token in each row, but row 1": lambda: model.generate([[5], []]),
        "`layout` must be Padded": lambda: model.generate(torch.zeros(1, 2).long(), layout=limelight.Packed([1, 1])),
        "`layout` belongs to a tensor": lambda: model.generate(PROMPTS, layout=Padded(3)),
        "`tokens` must be at least 1": lambda: model.generate(PROMPTS, tokens=0),
        "`copies` must be 1 for Greedy": lambda: model.generate(PROMPTS, tokens=1, copies=2),
        "`copies` must be at most the beam's 2": lambda: model.generate(PROMPTS, Beam(2), tokens=1, copies=3),
        "`sampler` must be Greedy, Sample or Beam": lambda: model.generate(PROMPTS, 0.7),
        "`sampler` must choose one token at a time": lambda: writer.stream("a", Beam(2)),
        "`prompt` must be a single one to stream": lambda: writer.stream(["a", "b"], tokens=1),
        "`stop` must be strings or tokens": lambda: writer.generate("a", stop=["b", ""]),
        "`stop` must be a string, a token id or several of them, but it is None": lambda: writer.generate(
            "a", stop=None
        ),
        "`stop` must be a string, .* it is 5.5": lambda: writer.generate("a", stop=5.5),
        "`stop` must be a string, .* it is b'x'": lambda: writer.generate("a", stop=b"x"),
        "`stop` must be strings or tokens, but True": lambda: writer.generate("a", stop=[True]),
        "`stop` must hold token ids from 0 to 49, but -1": lambda: writer.generate("a", stop=[-1]),
        r"`stop` must be characters .* U\+D83D": lambda: writer.generate("a", stop="b\ud83d"),
        "`prompt` must hold token ids from 0 to 49, but -1 is one of row 0": lambda: model.generate([-1]),
        "`prompt` must hold token ids from 0 to 49, but 50": lambda: model.generate(torch.tensor([[1], [50]])),
        f"`prompt` must hold token ids from 0 to 49, but {2**70}": lambda: model.generate([1, 2**70]),
        "`prompt` must hold at least one row": lambda: model.generate(torch.zeros(0, 3).long()),
        r"`text` must be characters that UTF-8 can write, .* 1 is U\+D800": lambda: writer.generate("a\ud800"),
        "`seed` must be a whole number, but it is 'x'": lambda: model.generate([1], Sample(), seed="x"),
        "`seed` must be a whole number, but it is 1.5": lambda: model.generate([1], Sample(), seed=1.5),
        "`seed` must fit into 64 bits": lambda: model.generate([1], Sample(), seed=2**63),
        "`logprobs` must be True or False": lambda: model.generate([1], logprobs="x"),
        "`sampler` must be Greedy, Sample or Beam, but it is the class Sample": lambda: model.generate([1], Sample),
        "`target` is for a model with an encoder": lambda: model.generate(PROMPTS, target=[1]),
        "`target` must be one, or one for each": lambda: pair("bart")[0].generate(PROMPTS, target=[[1], [2]]),
        "`model` must predict the next token": lambda: pair("bert")[0].generate(PROMPTS),
        "`text` is that of a single": lambda: model.generate(PROMPTS, tokens=1).text,
        "`texts` need a tokenizer": lambda: model.generate(PROMPTS, tokens=1).texts,
    }
    for message, call in bad.items():
        with pytest.raises(ArgumentError, match=message):
            call()
    begun = dataclasses.replace(model, special_token_ids={"bos_token_id": 5})
    assert begun.generate([[], [7]], tokens=2).ids == model.generate([[5], [7]], tokens=2).ids


def test_translations_share_a_source_among_beams(pair):
    model, _, _ = pair("marian")
    alone = [model.generate([prompt], Beam(3), target=[2], tokens=6, copies=2).ids for prompt in PROMPTS]
    assert model.generate(PROMPTS, Beam(3), target=[2], tokens=6, copies=2).ids == sum(alone, ())


@pytest.mark.parametrize(
    "sampler", [Greedy(), Greedy(repetition=1.5), Sample(), Sample(top_p=0.5), Sample(0.1, 3), Beam(2)]
)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_scores_that_say_nothing_choose_no_token(pair, writer, sampler, value, monkeypatch):
    model, _, _ = pair("llama")
    head_on, steps = type(model.network).head_on, []
    meant = {"nan": "NaN", "inf": "plus infinity", "-inf": "minus infinity alone"}[value]

    def spoiled(network, states):
        scores = head_on(network, states).clone()
        steps.append(len(steps))
        if len(steps) == 3:
            scores[-1, slice(None) if value == "-inf" else 7] = float(value)
        return scores

    monkeypatch.setattr(type(model.network), "head_on", spoiled)
    message = (
        f"`model` must give finite scores to choose a token from, but before new token 3 of row . they hold {meant}"
    )
    with pytest.raises(ArgumentError, match=message):
        model.generate(PROMPTS, sampler, tokens=5, logprobs=True)
    if not isinstance(sampler, Beam):
        steps.clear()
        pieces = writer.stream([5, 6], sampler, tokens=5)
        with pytest.raises(ArgumentError, match=message):
            list(pieces)
        assert len(pieces.result.ids) == 2


@pytest.mark.parametrize("sampler", [Greedy(), Sample(), Beam(2)])
def test_the_first_module_that_is_not_finite_is_named(pair, sampler):
    model, _, _ = pair("llama")
    weight = model.network.layers[1].feed_forward.inner.down.weight
    kept = weight[0, 0].item()
    try:
        weight[0, 0] = float("nan")
        with pytest.raises(ArgumentError, match=r"before new token 1 .* not finite: layers\.1\.feed_forward\."):
            model.generate(PROMPTS, sampler, tokens=2)
    finally:
        weight[0, 0] = kept


@pytest.mark.parametrize("sampler", [Greedy(), Sample(), Beam(2)])
def test_a_configuration_that_forbids_every_token(pair, sampler):
    model, _, _ = pair("llama")
    silent = dataclasses.replace(model, special_token_ids={"suppress_tokens": list(range(50))})
    with pytest.raises(ArgumentError, match=r"`model` must be allowed some token, .* leaves none as new token 1"):
        silent.generate(PROMPTS, sampler, tokens=2)


def test_ids_beyond_the_vocabulary_in_a_configuration(pair):
    model, _, _ = pair("llama")
    far = {
        "suppress_tokens": [50, 10**6],
        "begin_suppress_tokens": [99],
        "bad_words_ids": [[77], [3, 77]],
        "eos_token_id": 60,
    }
    assert dataclasses.replace(model, special_token_ids=far).generate(PROMPTS, tokens=3) == model.generate(
        PROMPTS, tokens=3
    )
    with pytest.raises(ArgumentError, match="`forced_eos_token_id` of the checkpoint must be one of the model's 50"):
        dataclasses.replace(model, special_token_ids={"forced_eos_token_id": 50}).generate(PROMPTS, tokens=3)


def test_a_special_token_stops_where_it_is_a_stop_string(writer):
    """A checkpoint may name another token as its end; a user knows the one that ends a turn by its spelling."""
    plain = writer.generate("abc", tokens=12)[0]
    token = plain.ids[4]
    at = plain.ids.index(token)
    spelled = writer.tokenizer.backend.id_to_token(token)
    changed = tokenizers.Tokenizer.from_str(writer.tokenizer.backend.to_str())
    changed.add_special_tokens([spelled])  # the model writes it, the text does not show it
    special = dataclasses.replace(writer, tokenizer_or_why=Tokenizer(changed))
    before = "".join(writer.tokenizer.write([one]) for one in plain.ids[:at])
    for stop in (spelled, [before[-1:] + spelled if at else spelled]):
        found = special.generate("abc", tokens=12, stop=stop)[0]
        assert found.ids == plain.ids[: at + 1]
        assert found.ended == "string"
        assert found.text == (before if stop == spelled else before[:-1])
        assert "".join(special.stream("abc", tokens=12, stop=stop)) == found.text


@pytest.mark.parametrize("how", [Greedy(), Sample(temperature=0.9), Beam(2)])
def test_the_default_device_is_not_asked(pair, how):
    """The meta device stands for any but that of the model."""
    ours, _, _ = pair("llama")
    torch.manual_seed(1)
    usual = ours.generate(PROMPTS, how, tokens=4).ids
    torch.manual_seed(1)
    with torch.device("meta"):
        assert ours.generate(PROMPTS, how, tokens=4).ids == usual


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"eos_token_id": "x"}, "eos_token_id = 'x', and Limelight reads there the id of a token, or a list of ids"),
        ({"eos_token_id": [7, None]}, r"eos_token_id = \[7, None\]"),
        ({"eos_token_id": True}, "eos_token_id = True"),
        ({"eos_token_id": 1.5}, "eos_token_id = 1.5"),
        ({"pad_token_id": -2}, "pad_token_id = -2"),
        ({"pad_token_id": 2**31}, "pad_token_id = 2147483648"),
        ({"suppress_tokens": [[1]]}, r"suppress_tokens = \[\[1\]\]"),
        ({"begin_suppress_tokens": {"a": 1}}, "begin_suppress_tokens = "),
        (
            {"bad_words_ids": [3]},
            r"bad_words_ids = \[3\], and Limelight reads there a list of lists of the ids of tokens",
        ),
        ({"bad_words_ids": [[]]}, "bad_words_ids"),
        ({"bad_words_ids": [[-1]]}, "bad_words_ids"),
        ({"forced_bos_token_id": "a"}, "forced_bos_token_id = 'a'"),
        ({"forced_decoder_ids": [1]}, r"forced_decoder_ids = \[1\], and Limelight reads there a list of pairs"),
        ({"forced_decoder_ids": [[1, -1]]}, "forced_decoder_ids"),
    ],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_token_ids_that_are_none(tmp_path, values, message, file):
    made("llama").save_pretrained(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(ArgumentError, match=f"{file} says {message}"):
        load(tmp_path)


def test_an_id_of_minus_one_says_that_there_is_none(tmp_path):
    theirs = made("llama")
    theirs.generation_config.eos_token_id = None
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    none = {"pad_token_id": -1, "eos_token_id": [7, -1], "suppress_tokens": [-1], "begin_suppress_tokens": []}
    path.write_text(json.dumps(json.loads(path.read_text()) | none))
    model = load(tmp_path)
    assert model.special_token_ids["eos_token_id"] == [7]
    assert not {"pad_token_id", "suppress_tokens", "begin_suppress_tokens"} & set(model.special_token_ids)
    assert len(model.generate(PROMPTS, tokens=2)) == 3
