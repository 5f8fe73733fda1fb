"""Models of transformers whose tokens lie on four processes: logits, and five steps of training, as in one process."""

import re
import threading

import pytest
import torch
import torch.distributed as dist
import transformers
from support.processes import run_processes

from limelight import Causal, Packed, Padded, Window
from limelight.backends.contract import BackendError
from limelight.distributed import ContextParallel
from limelight.integrations.transformers import context_parallel, enable, patterns_of
from limelight.tensors.shapes import ArgumentError

LENGTH, STEPS = 900, 5
TEXT = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": None,
}  # fmt: skip
TWO_KINDS = {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 100}
MODELS = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", TEXT),
    "mistral": ("MistralConfig", "MistralForCausalLM", TEXT | {"sliding_window": 64}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", TEXT | TWO_KINDS),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", TEXT | TWO_KINDS | {"attn_logit_softcapping": 2.0}),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM", TEXT | TWO_KINDS | {
        "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bert": ("BertConfig", "BertForMaskedLM", TEXT),
    "lfm2": ("Lfm2Config", "Lfm2ForCausalLM", TEXT | {"layer_types": ["conv", "full_attention"]}),
    "t5": ("T5Config", "T5ForConditionalGeneration", {
        "vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}),
    "bloom": ("BloomConfig", "BloomForCausalLM", {"vocab_size": 60, "hidden_size": 32, "n_layer": 1, "n_head": 4}),
    "classifier": ("LlamaConfig", "LlamaForSequenceClassification", TEXT),
    "bert with a pooler": ("BertConfig", "BertModel", TEXT),
    "dynamic": ("LlamaConfig", "LlamaForCausalLM", TEXT | {
        "max_position_embeddings": 128, "rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}}),
}  # fmt: skip
LENGTHS = (200, 1, 350, 349)
#: The model, and the documents of its texts.
CASES = {
    "gpt_oss": ("gpt_oss", None),
    "gpt_oss, packed": ("gpt_oss", Packed(LENGTHS)),
    "gemma3": ("gemma3", None),
    "gemma2": ("gemma2", None),
    "mistral": ("mistral", None),
    "llama, packed": ("llama", Packed(LENGTHS)),
    "bert": ("bert", None),
}


def made(name, implementation="limelight"):
    """A model of `MODELS`, with sinks and biases that matter; equal in every process."""
    enable()
    transformers.logging.set_verbosity_error()
    kind, model, settings = MODELS[name]
    config = getattr(transformers, kind)(**settings)
    config._attn_implementation = implementation
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    network = getattr(transformers, model)(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * 0.1 if parameter.dim() > 1 else parameter.data + noise * 0.1
    network.tie_weights()
    return network


def runs_of(layout=None, patterns=(None,)):
    return ContextParallel.balanced(dist.group.WORLD, LENGTH, patterns=patterns, layout=layout)


def step(network, logits, targets):
    """The gradients of the sum of a loss over targets, beside the loss."""
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="sum") / (2 * LENGTH)
    network.zero_grad()
    loss.backward()
    return loss.detach()


def trained(name, spread=None):
    """Logits and losses of five steps in one process, or of this process's tokens, and the parameters after them."""
    network, layout = made(CASES[name][0]), CASES[name][1]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9)
    texts = torch.randint(1, 60, (STEPS, 2, LENGTH), generator=torch.Generator().manual_seed(0))
    lengths = (LENGTH,) if layout is None else layout.query_lengths
    first, losses = None, []
    for tokens in texts:
        targets = tokens.roll(-1, 1)
        if spread is None:
            # One document at a time: of packed ones, GPT-OSS's masks (5.23) join all.
            logits = torch.cat([network(input_ids=one, use_cache=False).logits for one in tokens.split(lengths, 1)], 1)
            losses.append(step(network, logits, targets))
        else:
            with context_parallel(network, spread):
                logits = network(input_ids=spread.mine(tokens), position_ids=spread.positions, use_cache=False).logits
            loss = step(network, logits, spread.mine(targets))
            for parameter in network.parameters():
                dist.all_reduce(parameter.grad)
            dist.all_reduce(loss)
            losses.append(loss)
        first = logits.detach() if first is None else first
        optimizer.step()
    return first, torch.stack(losses), torch.cat([p.detach().flatten() for p in network.parameters()])


def compare():
    """Of each case the differences of logits, losses and parameters; each is computed in one process by one rank."""
    names, known = list(CASES), [None] * dist.get_world_size()
    dist.all_gather_object(known, {name: trained(name) for name in names[dist.get_rank() :: len(known)]})
    found = {}
    for name, (logits, losses, parameters) in ((name, one[name]) for one in known for name in one):
        spread = runs_of(CASES[name][1], patterns_of(made(CASES[name][0])))
        assert 0 < len(spread.index) < LENGTH / 2
        ours = trained(name, spread)
        apart = (ours[0] - spread.mine(logits)).abs().max().item()
        moved = (ours[2] - parameters).norm() / parameters.norm()
        falls = losses[-1] < losses[0]
        found[name] = apart, (ours[1] / losses - 1).abs().max().item(), moved.item(), bool(falls)
    return found


def message_of(call):
    with pytest.raises((ArgumentError, BackendError)) as raised:
        call()
    return str(raised.value)


def refused():
    """The message of each refusal."""
    spread, network = runs_of(), made("llama")
    tokens = spread.mine(torch.ones(1, LENGTH, dtype=torch.int64))
    given = {"input_ids": tokens, "position_ids": spread.positions}

    def entered(name):
        with context_parallel(made(name), spread):
            pass

    def inside(model=network, **changes):
        with context_parallel(network if model is None else model, spread):
            (model or network)(**given | changes)

    def nested():
        with context_parallel(network, spread), context_parallel(network, spread):
            pass

    padding = torch.ones_like(tokens)
    padding[:, 0] = 0
    cached = network(input_ids=tokens, use_cache=True).past_key_values
    found = {name: message_of(lambda name=name: entered(name)) for name in ("lfm2", "t5", "bloom", "classifier")}
    found |= {name: message_of(lambda name=name: entered(name)) for name in ("bert with a pooler", "dynamic")}
    found["eager"] = message_of(lambda: inside(made("llama", "eager")))
    found["no layout"] = message_of(lambda: context_parallel(network, Packed((1,))).__enter__())
    found["nested"] = message_of(nested)
    found["no positions"] = message_of(lambda: inside(position_ids=None))
    found["other positions"] = message_of(lambda: inside(position_ids=spread.positions + 1))
    found["padding"] = message_of(lambda: inside(attention_mask=padding))
    found["written mask"] = message_of(lambda: inside(attention_mask=torch.ones(1, 1, *2 * tokens.shape[1:]).bool()))
    found["cache"] = message_of(lambda: inside(past_key_values=cached))
    found["labels"] = message_of(lambda: inside(labels=tokens))
    found["weights"] = message_of(lambda: inside(output_attentions=True))
    found["whole text"] = message_of(lambda: inside(input_ids=torch.ones(1, LENGTH, dtype=torch.int64)))
    return found


def served():
    """What else is accepted: differences of losses, of checkpointed gradients, of padding, and of another thread."""
    network, spread = made("mistral"), runs_of()
    tokens = torch.randint(1, 60, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    given = {"input_ids": spread.mine(tokens), "position_ids": spread.positions, "use_cache": False}
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    found = {}
    with context_parallel(network, spread):
        own = {"labels": given["input_ids"], "shift_labels": spread.mine(shifted), "num_items_in_batch": 2 * LENGTH - 2}
        loss = network(**given, **own, attention_mask=torch.ones_like(given["input_ids"])).loss.detach()
        # Another thread has not entered it.
        other = []
        thread = threading.Thread(target=lambda: other.append(network(input_ids=tokens[:, :30]).logits.shape))
        thread.start()
        thread.join()
    dist.all_reduce(loss)
    found["loss"] = abs(loss.item() / network(input_ids=tokens, labels=tokens).loss.item() - 1)
    found["thread"] = abs(other[0][1] - 30)
    gradients = []
    network.train()
    for checkpoints in (False, True):
        if checkpoints:
            network.gradient_checkpointing_enable()
        with context_parallel(network, spread):
            logits = network(**given).logits
        network.zero_grad()
        logits.square().mean().backward()  # after the context
        gradients.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    found["checkpoints"] = (gradients[0] - gradients[1]).abs().max().item()
    padded = Padded(torch.tensor([500, LENGTH]))
    spread, network = runs_of(padded), made("bert")
    mask = padded.coordinates(2, LENGTH, LENGTH, torch.device("cpu")).query_exists
    with context_parallel(network, spread), torch.no_grad():
        logits = network(input_ids=spread.mine(tokens), position_ids=spread.positions).logits
    expected = network(input_ids=tokens, attention_mask=mask.long()).logits.detach()
    apart = (logits - spread.mine(expected))[spread.mine(mask)]
    found["padding"] = apart.abs().max().item() if apart.numel() else 0.0
    return found


def everything():
    return compare(), refused(), served()


@pytest.fixture(scope="module")
def results():
    return run_processes(everything, 4)


@pytest.mark.parametrize("name", CASES)
def test_five_steps_are_those_of_one_process(results, name):
    for rank, (found, _, _) in enumerate(results):
        logits, losses, parameters, falls = found[name]
        assert logits < 1e-5, rank
        assert losses < 1e-5, rank
        assert parameters < 1e-5, rank
        assert falls


REFUSALS = {
    "lfm2": "conv .*computes a token from its neighbours",
    "t5": "whose decoder reads an encoder",
    "bloom": "has attention of its own",
    "classifier": "chooses one token of each text",
    "bert with a pooler": "pooler makes one vector of a text",
    "dynamic": "depend on the length beyond 128",
    "eager": "its config asks for 'eager'",
    "no layout": "`spread` must be a ContextParallel",
    "nested": "`spread` must be the only one",
    "no positions": "`position_ids` must hold the positions .* it is None.* position_ids=spread.positions",
    "other positions": "`position_ids` must hold the positions",
    "padding": r"cannot serve an attention_mask with padding.*of=Padded\(lengths\)",
    "written mask": "cannot serve LlamaAttention under context_parallel: it gave no description",
    "cache": "cannot serve a cache",
    "labels": "`labels` must come with `shift_labels`",
    "weights": "output_attentions=True asks for weights",
    "whole text": "rank . holds",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_served_is_refused_on_every_rank_alike(results, name):
    for _, refusals, _ in results:
        assert re.search(REFUSALS[name], refusals[name]), refusals[name]


@pytest.mark.parametrize("name", ["loss", "thread", "checkpoints", "padding"])
def test_what_else_is_served(results, name):
    assert max(found[name] for _, _, found in results) < 1e-5


def test_patterns_of_a_configuration():
    assert patterns_of(made("gpt_oss")) == [Causal() & Window(99, None), Causal()]
    assert patterns_of(made("mistral")) == [Causal() & Window(63, None)] * 2
    assert patterns_of(made("llama")) == [Causal()] * 2
    assert patterns_of(made("bert")) == [None] * 2
