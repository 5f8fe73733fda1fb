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

YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8}
ALBERT = BERT | {"embedding_size": 16}
DISTILBERT = {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 24}
GPT2 = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
# the width's root is a whole number: transformers rounds the scale of the embedding to float32 when it is made
GEMMA2 = LLAMA | {"hidden_size": 64, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 144}
GEMMA2 |= {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 2.0, "num_hidden_layers": 3}
KINDS = ["sliding_attention", "full_attention"]

# id: (class of the model, class of the configuration, its values)
TEXT = {
    "bert": (transformers.BertModel, transformers.BertConfig, BERT),
    "bert-masked": (transformers.BertForMaskedLM, transformers.BertConfig, BERT | {"hidden_act": "gelu_new"}),
    "bert-classes": (transformers.BertForSequenceClassification, transformers.BertConfig, BERT | {"num_labels": 3}),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig, BERT),
    "roberta-masked": (transformers.RobertaForMaskedLM, transformers.RobertaConfig, BERT | {"hidden_act": "relu"}),
    "roberta-classes": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig, BERT),
    "distilbert": (transformers.DistilBertModel, transformers.DistilBertConfig, DISTILBERT),
    "distilbert-masked": (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig, DISTILBERT),
    "distilbert-classes": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig,
        DISTILBERT | {"id2label": {0: "bad", 1: "good"}, "activation": "relu"},
    ),
    "albert": (transformers.AlbertModel, transformers.AlbertConfig, ALBERT | {"num_hidden_layers": 3}),
    "albert-masked": (transformers.AlbertForMaskedLM, transformers.AlbertConfig, ALBERT),
    "albert-classes": (transformers.AlbertForSequenceClassification, transformers.AlbertConfig, ALBERT),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, GPT2),
    "gpt2-body": (transformers.GPT2Model, transformers.GPT2Config, GPT2 | {"n_inner": 20}),
    "gpt2-scaled-by-layer": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config,
        GPT2 | {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
    ),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA),
    "llama-tied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA | {"tie_word_embeddings": True}),
    "llama-body": (transformers.LlamaModel, transformers.LlamaConfig, LLAMA),
    "llama-yarn": (transformers.LlamaForCausalLM, transformers.LlamaConfig, LLAMA | {"rope_parameters": YARN}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, LLAMA | {"sliding_window": 4}),
    "mistral-full": (transformers.MistralForCausalLM, transformers.MistralConfig, LLAMA | {"sliding_window": None}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, LLAMA | {"head_dim": 6}),
    "qwen3-windows": (
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config,
        LLAMA | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "attention_bias": True},
    ),
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config, GEMMA2),
    "gemma2-plain": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": KINDS[1:] * 3},
    ),
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
