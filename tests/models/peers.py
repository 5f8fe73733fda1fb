"""Small random models of every family, as transformers makes them: what ours are compared with."""

import inspect

import torch
import transformers

import limelight

LENGTHS = [7, 1, 11]
FIRST_WORD = 5  # ids below are marks, which some models of transformers treat as padding wherever they stand

BERT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
}
LLAMA = BERT | {"num_key_value_heads": 2, "max_position_embeddings": 64}

# id: (class of the model, class of the configuration, its values)
TEXT = {
    "bert": (transformers.BertModel, transformers.BertConfig, BERT),
    "bert-masked": (transformers.BertForMaskedLM, transformers.BertConfig, BERT | {"hidden_act": "gelu_new"}),
    "bert-classes": (transformers.BertForSequenceClassification, transformers.BertConfig, BERT | {"num_labels": 3}),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA),
    "llama-tied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA | {"tie_word_embeddings": True}),
    "llama-body": (transformers.LlamaModel, transformers.LlamaConfig, LLAMA),
}


def made(name, cases=TEXT):
    """One of the models, in float64, with weights large enough to matter."""
    shape, make_config, values = cases[name]
    torch.manual_seed(0)
    model = shape(make_config(**values, attn_implementation="eager"))
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.3
    model.tie_weights()
    return model.to(torch.float64).eval()


def batch(side, pad=0):
    """Token ids, our layout of them, and which exist."""
    ids = torch.randint(FIRST_WORD, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    place, lengths = torch.arange(11), torch.tensor(LENGTHS)
    exists = place < lengths[:, None] if side == "right" else place >= 11 - lengths[:, None]
    return ids.where(exists, pad), limelight.Padded(lengths, side=side), exists


def run(model, ids, exists, **more):
    """Their outputs, told which tokens exist and where they stand."""
    takes = inspect.signature(model.forward).parameters
    if "position_ids" in takes:
        more["position_ids"] = (exists.long().cumsum(-1) - 1).clamp(min=0) + first_position(model)
    return model(ids, attention_mask=exists.long(), output_hidden_states=True, **more)


def first_position(model):
    """RoBERTa and its kin number their positions from behind that of padding."""
    return model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0


def takes_positions(model):
    """Whether the model can be told where tokens stand, so that padding may be at the left."""
    return "position_ids" in inspect.signature(model.forward).parameters
