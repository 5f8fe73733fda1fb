"""Real weights: equal to transformers, and the facts measured on them."""

import pytest
import torch
from support.agreement import (
    assert_equal,
    assert_no_worse,
    assert_no_worse_by_token,
    assert_same_choices,
    float64_throughout,
    real_tokens,
)
from support.marian_oracle import Oracle

import limelight
from limelight.checkpoints.load import load
from limelight.formats.marian_files import MarianFile
from limelight.generation import Beam, Sample
from limelight.models.sound import recording, spectrum
from limelight.nn import Cache

BANK = "The bank is near the river."
MONEY = "She deposited money at the bank."
TEXTS = [BANK, "Hi", MONEY + " It was closed; she walked home through the rain, 3.14 km."]
# Llama's states hold single numbers of 20,000: it takes many tokens until the largest error is no matter of luck
MORE_TEXTS = [
    *TEXTS,
    "def f(x):\n    return x + 1\n",
    "Paris is the capital of France, Berlin of Germany, and Madrid of Spain.",
    "1 2 3 4 5 6 7 8 9 10 11 12",
    "Why do cats purr?",
    "The quick brown fox jumps over the lazy dog. " * 3,
    "In 1905 Einstein published four papers.",
    "<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
    "Water boils at 100 degrees.",
    "A man is playing a guitar.",
]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def in_float64():
    """Move models to float64 for one test, and back."""
    moved = []

    def move(*models):
        for model in models:
            moved.append(model)
            model.to(torch.float64)

    yield move
    for model in moved:
        model.to(torch.float32)  # weights came from float32: nothing is lost


def compared(model, theirs, tokens, **how):
    """Our output, and their hidden states and logits."""
    mask = real_tokens(tokens)
    ours = model(tokens, hidden=True)
    other = theirs(tokens.ids, attention_mask=mask.long(), output_hidden_states=True, **how)
    return ours, other, mask


@pytest.mark.parametrize("side", ["right", "left"])
def test_minilm_is_transformers_bert(minilm, their_minilm, in_float64, side):
    tokens = minilm.read(TEXTS, side=side)
    # BERT counts its positions from the first token; with left padding transformers needs position_ids for that
    positions = (real_tokens(tokens).long().cumsum(-1) - 1).clamp(min=0)
    ours, eager, mask = compared(minilm, their_minilm, tokens, position_ids=positions)
    in_float64(minilm, their_minilm)
    exact, truth, _ = compared(minilm, their_minilm, tokens, position_ids=positions)
    assert len(exact.hidden) == len(truth.hidden_states) == 7
    for mine, theirs, mine32, eager32 in zip(
        exact.hidden, truth.hidden_states, ours.hidden, eager.hidden_states, strict=True
    ):
        assert_equal(mine[mask], theirs[mask])
        assert_no_worse(mine32[mask], eager32[mask], theirs[mask])
    assert_equal(exact.states[mask], truth.last_hidden_state[mask])
    assert exact.logits is None


def test_smollm2_is_transformers_llama(smollm2, their_smollm2, in_float64):
    tokens = smollm2.read(MORE_TEXTS)
    ours, eager, mask = compared(smollm2, their_smollm2, tokens)
    in_float64(smollm2, their_smollm2)
    with float64_throughout(their_smollm2):
        exact, truth, _ = compared(smollm2, their_smollm2, tokens)
    assert len(exact.hidden) == len(truth.hidden_states) == 31
    for mine, theirs, mine32, eager32 in zip(
        exact.hidden, truth.hidden_states, ours.hidden, eager.hidden_states, strict=True
    ):
        assert_equal(mine[mask], theirs[mask])
        assert_no_worse_by_token(mine32[mask], eager32[mask], theirs[mask])
    assert_equal(exact.logits[mask], truth.logits[mask])
    assert_no_worse(ours.logits[mask], eager.logits[mask], truth.logits[mask])
    assert_same_choices(ours.logits[mask], truth.logits[mask])


def test_smollm2_with_padding_at_the_left(smollm2, their_smollm2, in_float64):
    tokens = smollm2.read(TEXTS, side="left")
    in_float64(smollm2, their_smollm2)
    positions = (real_tokens(tokens).long().cumsum(-1) - 1).clamp(min=0)
    with float64_throughout(their_smollm2):
        exact, truth, mask = compared(smollm2, their_smollm2, tokens, position_ids=positions)
    assert_equal(exact.logits[mask], truth.logits[mask])
    last = exact.logits[:, -1].argmax(-1)  # what padding at the left is for: the last token of each row stands last
    assert torch.equal(last, torch.stack([smollm2(text).logits[0, -1].argmax() for text in TEXTS]))


def test_smollm2_at_far_positions(smollm2, their_smollm2, in_float64):
    """At position 8,000 angles matter: the operator sees where tokens stand, and float32 is no worse for it."""
    tokens = smollm2.read(MORE_TEXTS[7] * 2)
    start = 8192 - tokens.ids.shape[1]
    here = limelight.Aligned(query_start=start, key_start=start)
    positions = torch.arange(start, 8192)[None]
    ours = smollm2(tokens.ids, layout=here).logits
    eager = their_smollm2(tokens.ids, position_ids=positions).logits
    in_float64(smollm2, their_smollm2)
    with float64_throughout(their_smollm2):
        truth = their_smollm2(tokens.ids, position_ids=positions).logits
    assert_equal(smollm2(tokens.ids, layout=here).logits, truth)
    assert_no_worse(ours, eager, truth)
    with pytest.raises(limelight.ArgumentError, match="has 8193 tokens"):
        smollm2(tokens.ids, layout=limelight.Aligned(query_start=start + 1, key_start=start + 1))


def test_a_row_does_not_feel_its_batch(minilm, smollm2):
    for model in (minilm, smollm2):
        tokens = model.read(TEXTS)
        together = model(tokens).states
        for row, text in enumerate(TEXTS):
            alone = model(text).states[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-4, atol=1e-4)


def test_packed_texts_are_separate_texts(smollm2):
    rows = [smollm2.read(text).ids[0] for text in TEXTS]
    packed = smollm2(torch.cat(rows)[None], layout=limelight.Packed([len(row) for row in rows])).states[0]
    for part, row in zip(packed.split([len(row) for row in rows]), rows, strict=True):
        torch.testing.assert_close(part, smollm2(row[None]).states[0], rtol=1e-4, atol=1e-4)


def test_the_weights_are_those_of_transformers_to_the_last_bit(smollm2, their_smollm2):
    theirs = their_smollm2.model
    assert torch.equal(smollm2.network.embedding.tokens.weight, theirs.embed_tokens.weight)
    for ours, other in zip(smollm2.network.layers, theirs.layers, strict=True):
        pairs = zip(("query", "key", "value", "output"), ("q_proj", "k_proj", "v_proj", "o_proj"), strict=True)
        for mine, name in pairs:
            assert torch.equal(getattr(ours.attention.inner, mine).weight, getattr(other.self_attn, name).weight)
        assert torch.equal(ours.feed_forward.inner.gate.weight, other.mlp.gate_proj.weight)


SAID = " Ever tried, ever failed. No matter, try again. Fail again. Fail better."
REACTION = "CC(C)S.CN(C)C=O.Fc1cccnc1F.O=C([O-])[O-].[K+].[K+]>>CC(C)Sc1ncccc1F"
REACTIONS = [
    REACTION,
    "CCO>>CC=O",
    "BrC1CC1.OB(O)c1ccccc1>>c1ccc(C2CC2)cc1",
    "CC(=O)Cl.NCc1ccccc1>>CC(=O)NCc1ccccc1",
    "CC(C)(C)OC(=O)NC1CCNCC1.Clc1ncccn1>>CC(C)(C)OC(=O)NC1CCN(c2ncccn2)CC1",
    "C[C@@H](N)C(=O)O.CO>>COC(=O)[C@@H](C)N",
]


def test_rxnmapper_is_transformers_albert(rxnmapper, their_rxnmapper, in_float64):
    tokens = rxnmapper.read(REACTIONS)
    ours, eager, mask = compared(rxnmapper, their_rxnmapper, tokens)
    in_float64(rxnmapper, their_rxnmapper)
    exact, truth, _ = compared(rxnmapper, their_rxnmapper, tokens)
    assert len(exact.hidden) == len(truth.hidden_states) == 13
    pairs = zip(exact.hidden, truth.hidden_states, ours.hidden, eager.hidden_states, strict=True)
    for mine, theirs, mine32, eager32 in (*pairs, (exact.logits, truth.logits, ours.logits, eager.logits)):
        assert_equal(mine[mask], theirs[mask])
        assert_no_worse_by_token(mine32[mask], eager32[mask], theirs[mask])


def test_whisper_is_transformers_whisper(whisper, their_whisper, beckett, in_float64):
    heard = spectrum(recording(beckett))
    ids = torch.tensor([[50257, 50362, 5155, 3088, 11, 1683, 4054, 13]])
    how = {"decoder_input_ids": ids, "output_hidden_states": True}
    ours, eager = whisper.network(ids, source=heard, hidden=True), their_whisper(input_features=heard, **how)
    in_float64(whisper, their_whisper)
    exact, truth = (
        whisper.network(ids, source=heard.double(), hidden=True),
        their_whisper(input_features=heard.double(), **how),
    )
    sides = [(one.encoded.hidden, one.hidden, (one.logits,)) for one in (ours, exact)]
    other = [(one.encoder_hidden_states, one.decoder_hidden_states, (one.logits,)) for one in (eager, truth)]
    flat = ([tensor for part in one for tensor in part] for one in (*sides, *other))
    for mine32, mine, eager32, theirs in zip(*flat, strict=True):
        assert_equal(mine, theirs)
        assert_no_worse_by_token(mine32, eager32, theirs)


ENGLISH = "The bank of the river was covered with flowers."
PORTUGUESE = "A margem do rio estava coberta de flores."


def test_marian_is_its_plain_matrices(translator, in_float64):
    file = MarianFile(translator.source / "model.enpt.intgemm.alphas.bin")
    oracle = Oracle({key: file.read(key) for key in file.keys() if not key.endswith("QuantMultA")})  # noqa: SIM118
    in_float64(translator)
    source, target = translator.read(ENGLISH), translator.read(PORTUGUESE)
    output = translator(source, target=target, hidden=True)
    encoded = oracle.encode(source.ids[0])
    assert_equal(output.encoded.states[0], encoded)
    logits = oracle.logits(target.ids[0], encoded)
    assert_equal(output.logits[0, :, :-1], logits)
    assert (output.logits[..., -1] == -torch.inf).all()  # the token that every text begins with is never written
    assert logits[:-1].argmax(-1).tolist() == target.ids[0].tolist()
    batch = translator([ENGLISH, "Hello."], target=[PORTUGUESE, "A margem"])
    assert_equal(batch.logits[:1, :, :-1], output.logits[:, :, :-1])
    with pytest.raises(limelight.ArgumentError, match=r"`model` must be of a kind that transformers has.*recurrent"):
        translator.save("nowhere")


# -- facts --


def mean_vector(model, text):
    return model(text).states[0].mean(0)


def cosine(a, b):
    return torch.cosine_similarity(a, b, dim=-1).item()


def vector_of(model, text, word, layer):
    place = model.read(text).texts[0].tokens.index(word)
    return model(text, hidden=True).hidden[layer][0, place]


def test_minilm_knows_what_sentences_are_alike(minilm):
    guitar, other, market = (
        mean_vector(minilm, text)
        for text in (
            "A man is playing a guitar.",
            "Someone plays an instrument.",
            "The stock market fell sharply today.",
        )
    )
    assert cosine(guitar, other) == pytest.approx(0.667, abs=0.0006)
    assert cosine(guitar, market) == pytest.approx(-0.05, abs=0.006)


def test_bank_looks_at_river(minilm):
    text = minilm.read(BANK).texts[0]
    bank, river = text.tokens.index("bank"), text.tokens.index("river")
    with limelight.watching(limelight.Observe(rows=[bank])) as seen:
        minilm(BANK)
    assert tuple(seen) == minilm.network.attention_names
    weights = seen.calls("layers.0.attention")[0].rows[0, :, 0, river]  # (12,)
    assert weights.max().item() == pytest.approx(0.64, abs=0.006)


def test_bank_becomes_two_words(minilm):
    first, second = (cosine(vector_of(minilm, BANK, "bank", n), vector_of(minilm, MONEY, "bank", n)) for n in (0, 3))
    assert first == pytest.approx(0.96, abs=0.006)
    assert second == pytest.approx(0.84, abs=0.006)


@pytest.mark.parametrize(("end", "dog", "park"), [("excited", 0.095, 0.050), ("open", 0.059, 0.082)])
def test_it_is_the_dog_or_the_park(minilm, end, dog, park):
    sentence = f"The dog ran around the park because it was {end}."
    tokens = minilm.read(sentence).texts[0].tokens
    with limelight.watching(limelight.Observe(rows=[tokens.index("it")])) as seen:
        minilm(sentence)
    weights = seen.calls("layers.3.attention")[0].rows[0, :, 0].mean(0)  # the fourth layer
    assert weights[tokens.index("dog")].item() == pytest.approx(dog, abs=0.0006)
    assert weights[tokens.index("park")].item() == pytest.approx(park, abs=0.0006)


def test_smollm2_knows_the_capital_of_france(smollm2):
    text = "The capital of France is"
    for expected in (" Paris", "."):
        best = smollm2(text).logits[0, -1].argmax()
        assert smollm2.tokenizer.write([best]) == expected
        text += expected


def test_smollm2_copies_what_it_has_seen(smollm2):
    generator = torch.Generator().manual_seed(0)
    once = torch.randint(17, smollm2.config.vocabulary, (60,), generator=generator)
    ids = torch.cat((once, once))[None]
    with limelight.watching(limelight.Observe(pairs=[(i, i - 59) for i in range(60, 119)])) as seen:
        logits = smollm2(ids).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    assert loss[60:].mean() < loss[:59].mean() / 3
    assert seen.calls("layers.18.attention")[0].pairs[0, 6].mean() > 0.7


def test_rxnmapper_follows_the_atoms_of_a_reaction(rxnmapper):
    tokens = rxnmapper.read(REACTION).texts[0].tokens
    arrow = tokens.index(">>")
    atoms = [i for i, token in enumerate(tokens) if token.strip("[]+-").isalpha() and token not in ("[CLS]", "[SEP]")]
    before, after = [i for i in atoms if i < arrow], [i for i in atoms if i > arrow]
    with limelight.watching(limelight.Observe(rows=list(range(len(tokens))))) as seen:
        rxnmapper(REACTION)
    assert tuple(seen) == rxnmapper.network.attention_names  # its layers share parameters, and have names of their own
    weights = seen.calls("layers.10.attention")[0].rows[0, 5]  # (L, L)
    both = weights[after][:, before] + weights[before][:, after].T

    def element(i):
        return tokens[i].strip("[]+-").upper()

    same = torch.tensor([[element(i) == element(j) for j in before] for i in after])
    found = both.masked_fill(~same, -1).argmax(-1).tolist()
    # the thiol keeps its four atoms, the ring is walked from the carbon whose fluorine left, beside the nitrogen
    assert found == [0, 1, 2, 3, 15, 14, 13, 12, 11, 10, 9]


def test_whisper_writes_down_what_is_said(whisper, their_whisper, beckett):
    heard = spectrum(recording(beckett))
    begin, end = [50257, 50362], whisper.special_token_ids["eos_token_id"]
    encoded, cache, ids, new = whisper.network.encode(heard), Cache(), list(begin), begin
    while new != [end] and len(ids) < 100:
        logits = whisper.network(torch.tensor([new]), source=encoded, cache=cache).logits[0, -1]
        logits[whisper.special_token_ids["suppress_tokens"]] = -torch.inf
        new = [int(logits.argmax())]
        ids += new
    assert whisper.tokenizer.write(ids) == SAID
    whole = whisper(heard, target=SAID)  # its tokenizer puts the special tokens before and after
    assert whole.logits[0].argmax(-1).tolist()[1:-1] == ids[2:]
    theirs = their_whisper(input_features=heard, decoder_input_ids=torch.tensor([ids[:-1]])).logits[0]
    theirs[:, whisper.special_token_ids["suppress_tokens"]] = -torch.inf
    assert theirs.argmax(-1).tolist()[1:] == ids[2:]


def test_whisper_looks_along_the_sound(whisper, beckett):
    """The heads that are published as its aligning ones look at where each word is said, one word after the other."""
    words = whisper.tokenizer.backend.encode(SAID, add_special_tokens=False).ids
    ids = torch.tensor([[50257, 50362, *words]])
    rows = list(range(1, 1 + len(words)))  # each foretells the next
    with limelight.watching(limelight.Observe(rows=rows)) as seen:
        whisper.network(ids, source=spectrum(recording(beckett)))
    heads = [(1, 0), (2, 0), (2, 5), (3, 0), (3, 1), (3, 2), (3, 3), (3, 4)]
    weights = sum(seen.calls(f"layers.{layer}.cross")[0].rows[0, head] for layer, head in heads)
    seconds = weights[:-1].argmax(-1) / 50  # the last point is said by silence
    assert (seconds.diff() >= 0).all()
    assert seconds[0] < 1
    assert seconds[-1] == pytest.approx(8.6, abs=0.3)  # "better"


def test_saved_and_read_by_transformers(tmp_path, rxnmapper, whisper, their_rxnmapper, their_whisper):
    for name, model, theirs in (("rxnmapper", rxnmapper, their_rxnmapper), ("whisper", whisper, their_whisper)):
        model.save(tmp_path / name)
        again = type(theirs).from_pretrained(tmp_path / name)
        for (key, ours), (_, other) in zip(again.named_parameters(), theirs.named_parameters(), strict=True):
            assert torch.equal(ours, other), key
    assert load(tmp_path / "rxnmapper").read(REACTION).texts[0] == rxnmapper.read(REACTION).texts[0]


def test_marian_translates_and_aligns(translator):
    source = translator.read(ENGLISH)
    encoded, cache = translator.network.encode(source.ids), Cache()
    end, ids, new = (
        translator.special_token_ids["eos_token_id"],
        [],
        translator.special_token_ids["decoder_start_token_id"],
    )
    with limelight.watching(limelight.Observe(top=1)) as seen:
        while new != end and len(ids) < 30:
            new = int(translator.network(torch.tensor([[new]]), source=encoded, cache=cache).logits[0, -1].argmax())
            ids.append(new)
    assert translator.tokenizer.write(ids) == PORTUGUESE
    looked = [int(one.top_keys[0, 0, 0, 0]) for one in seen.calls("layers.1.cross")]
    aligned = [source.texts[0].pieces[place].strip() for place in looked[:-1]]
    assert aligned == ["The", "bank", "the", "river", "was", "covered", "with", "flowers", "."]


def test_smollm2_writes(smollm2):
    prompts = ["The capital of France is", "Hi"]
    found = smollm2.generate(prompts, tokens=6, stop="\n")
    assert found.texts[0] == " Paris."
    assert found[0].ended == "string"
    plain = smollm2.read(prompts[1]).ids
    for _ in range(6):
        plain = torch.cat((plain, smollm2(plain).logits[:, -1:].argmax(-1)), dim=1)
    assert list(found.ids[1]) == plain[0, -len(found.ids[1]) :].tolist()
    drawn = smollm2.generate(prompts, Sample(top_p=0.9), tokens=4, seed=3, copies=2)
    assert smollm2.generate(prompts[1], Sample(top_p=0.9), tokens=4, seed=3).ids[0] == drawn.ids[2]


def test_smollm2_answers(smollm2):
    asked = smollm2.conversation("What is the capital of France?")
    whole = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    assert asked.texts[0].text.endswith(whole)
    assert asked.texts[0].text.startswith("<|im_start|>system\n")
    pieces = smollm2.stream(asked, tokens=12)
    message = "".join(pieces)
    assert "Paris" in message
    assert message == smollm2.generate(asked, tokens=12).text


def test_whisper_generates(whisper, beckett):
    heard = spectrum(recording(beckett))
    found = whisper.generate(heard)
    assert found.text == SAID
    assert found[0].ended == "token"
    assert whisper.generate(heard, target=" Ever tried, ever").text == SAID.removeprefix(" Ever tried, ever")


def test_marian_generates(translator):
    found = translator.generate([ENGLISH, "Hello."], Beam(3))
    assert found.texts == (PORTUGUESE, "Olá.")
    assert translator.generate(["Hello.", ENGLISH]).texts == ("Olá.", PORTUGUESE)


# --- The models of transformers, on Limelight ------------------------------------------------------------------------


@pytest.fixture
def on_limelight():
    """Puts Limelight under a model for one test, and eager attention back."""
    from limelight.integrations.transformers import enable

    enable()
    moved = []

    def move(model):
        moved.append(model)
        model.set_attn_implementation("limelight")

    yield move
    for model in moved:
        model.set_attn_implementation("eager")


def test_transformers_llama_generates_on_limelight(smollm2, their_smollm2, on_limelight):
    tokens = smollm2.read([BANK, "Hi"], side="left")
    settings = {
        "attention_mask": real_tokens(tokens).long(),
        "max_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
    }
    eager = their_smollm2.generate(tokens.ids, **settings)
    on_limelight(their_smollm2)
    assert torch.equal(their_smollm2.generate(tokens.ids, **settings), eager)


def test_transformers_bert_is_watched_on_limelight(minilm, their_minilm, on_limelight):
    """The same observations as of our own model, under the names of theirs."""
    tokens = minilm.read(TEXTS)
    mask = real_tokens(tokens)
    wanted = limelight.Observe(entropy=True, max_weight=True)
    on_limelight(their_minilm)
    with limelight.watching(wanted) as theirs:
        their_minilm(tokens.ids, attention_mask=mask.long())
    with limelight.watching(wanted) as ours:
        minilm(tokens)
    for layer in range(6):
        seen, expected = theirs[f"encoder.layer.{layer}.attention.self"], ours[f"layers.{layer}.attention"]
        for name, values in seen.seen().items():
            real = values.transpose(1, 2)[mask]
            torch.testing.assert_close(real, getattr(expected, name).transpose(1, 2)[mask], rtol=1e-4, atol=1e-5)
