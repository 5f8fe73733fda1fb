"""Small random models of every family, as transformers makes them: what ours are compared with."""

import inspect

import torch
import transformers

import limelight

LENGTHS = [7, 1, 11]
FIRST_WORD = 5  # ids below are special tokens, which some models of transformers treat as padding wherever they stand

UNTIED = {"tie_word_embeddings": False}
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
FACTORS = {"short_factor": [1.0, 1.25, 1.5, 2.0], "long_factor": [1.0, 2.5, 8.0, 17.0]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 500.0, **FACTORS, "original_max_position_embeddings": 32}
PARTIAL = LONGROPE | {name: factors[:2] for name, factors in FACTORS.items()} | {"partial_rotary_factor": 0.5}
PHI3 = LLAMA | {"original_max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
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
    "bert-untied": (transformers.BertForMaskedLM, transformers.BertConfig, BERT | UNTIED),
    "bert-classes": (transformers.BertForSequenceClassification, transformers.BertConfig, BERT | {"num_labels": 3}),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig, BERT),
    "roberta-masked": (transformers.RobertaForMaskedLM, transformers.RobertaConfig, BERT | {"hidden_act": "relu"}),
    "roberta-untied": (transformers.RobertaForMaskedLM, transformers.RobertaConfig, BERT | UNTIED),
    "roberta-classes": (transformers.RobertaForSequenceClassification, transformers.RobertaConfig, BERT),
    "distilbert": (transformers.DistilBertModel, transformers.DistilBertConfig, DISTILBERT),
    "distilbert-masked": (transformers.DistilBertForMaskedLM, transformers.DistilBertConfig, DISTILBERT),
    "distilbert-untied": (
        transformers.DistilBertForMaskedLM,
        transformers.DistilBertConfig,
        DISTILBERT | UNTIED,
    ),
    "distilbert-classes": (
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig,
        DISTILBERT | {"id2label": {0: "bad", 1: "good"}, "activation": "relu"},
    ),
    "albert": (transformers.AlbertModel, transformers.AlbertConfig, ALBERT | {"num_hidden_layers": 3}),
    "albert-masked": (transformers.AlbertForMaskedLM, transformers.AlbertConfig, ALBERT),
    "albert-untied": (transformers.AlbertForMaskedLM, transformers.AlbertConfig, ALBERT | UNTIED),
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
    "mixtral": (transformers.MixtralForCausalLM, transformers.MixtralConfig, LLAMA | {"num_local_experts": 3}),
    "mixtral-window": (
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig,
        LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 1, "sliding_window": 4},
    ),
    "gemma2": (transformers.Gemma2ForCausalLM, transformers.Gemma2Config, GEMMA2),
    "phi3": (transformers.Phi3ForCausalLM, transformers.Phi3Config, PHI3 | {"rope_parameters": LONGROPE}),
    "phi3-window": (
        transformers.Phi3ForCausalLM,
        transformers.Phi3Config,
        PHI3 | {"sliding_window": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "phi3-partial": (
        transformers.Phi3ForCausalLM,
        transformers.Phi3Config,
        PHI3 | {"rope_parameters": PARTIAL, "tie_word_embeddings": True},
    ),
    "phi3-body": (transformers.Phi3Model, transformers.Phi3Config, PHI3 | {"num_key_value_heads": 4}),
    "gemma2-plain": (
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config,
        GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": KINDS[1:] * 3},
    ),
}

T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4}
T5 |= {"num_decoder_layers": 3, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 20}
T5 |= {"decoder_start_token_id": 0}
BART = {"vocab_size": 50, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "max_position_embeddings": 24}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 24}
MARIAN = BART | {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2, "d_model": 36}
WHISPER = {key: value for key, value in BART.items() if key != "max_position_embeddings"}
WHISPER |= {"num_mel_bins": 6, "max_source_positions": 10, "max_target_positions": 24}
WHISPER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3}
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40, "num_channels": 2}
VIT |= {"image_size": 8, "patch_size": 4}

PAIRS = {
    "t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, T5),
    "t5-1.1": (
        transformers.T5ForConditionalGeneration,
        transformers.T5Config,
        T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5-body": (transformers.T5Model, transformers.T5Config, T5 | {"feed_forward_proj": "gated-silu"}),
    "bart": (transformers.BartForConditionalGeneration, transformers.BartConfig, BART),
    "bart-scaled": (transformers.BartModel, transformers.BartConfig, BART | {"scale_embedding": True, "d_model": 36}),
    "marian": (transformers.MarianMTModel, transformers.MarianConfig, MARIAN | {"scale_embedding": True}),
    "marian-two-tables": (
        transformers.MarianMTModel,
        transformers.MarianConfig,
        MARIAN | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60},
    ),
    "bart-untied": (transformers.BartForConditionalGeneration, transformers.BartConfig, BART | UNTIED),
    "bart-untied-body": (transformers.BartModel, transformers.BartConfig, BART | UNTIED),
    "marian-untied": (transformers.MarianMTModel, transformers.MarianConfig, MARIAN | UNTIED),
    "marian-untied-two-tables": (
        transformers.MarianMTModel,
        transformers.MarianConfig,
        MARIAN | UNTIED | {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 60},
    ),
    "whisper": (transformers.WhisperForConditionalGeneration, transformers.WhisperConfig, WHISPER),
    "whisper-untied": (transformers.WhisperForConditionalGeneration, transformers.WhisperConfig, WHISPER | UNTIED),
}
PICTURES = {
    "vit": (transformers.ViTModel, transformers.ViTConfig, VIT),
    "vit-classes": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig,
        VIT | {"num_labels": 3, "image_size": [8, 12], "patch_size": [2, 4], "qkv_bias": False},
    ),
}
EVERY = TEXT | PAIRS | PICTURES


def made(name, cases=EVERY):
    """One of the models, in float64, with weights large enough to matter."""
    shape, make_config, values = cases[name]
    torch.manual_seed(0)
    config = make_config(**values, attn_implementation="eager")
    config._experts_implementation = "eager"  # the others have no float64
    model = shape(config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64) * 0.3
    for parameter in (module for key, module in model.named_buffers() if key == "final_logits_bias"):
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64)
    model.tie_weights()
    if name == "t5-1.1":  # transformers ties even these, unless a file has both
        model.lm_head.weight = torch.nn.Parameter(torch.randn(50, 32, dtype=torch.float64))
    for module in model.modules():
        if type(module).__name__ == "MarianSinusoidalPositionalEmbedding":
            module.weight.data = waves(*module.weight.shape)
    return model.to(torch.float64).eval()


def waves(count, width):
    """The positions of Marian, in float64."""
    angles = torch.arange(count).double()[:, None] / 10_000 ** (torch.arange(0, width, 2).double() / width)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def batch(side, pad=0):
    """Token ids, our layout of them, and which exist."""
    ids = torch.randint(FIRST_WORD, 50, (3, 11), generator=torch.Generator().manual_seed(1))
    place, lengths = torch.arange(11), torch.tensor(LENGTHS)
    exists = place < lengths[:, None] if side == "right" else place >= 11 - lengths[:, None]
    return ids.where(exists, pad), limelight.Padded(lengths, side=side), exists


def given(name, theirs, side="right"):
    """What a model is given: our arguments, theirs, and which vectors of which output exist."""
    pad = getattr(theirs.config, "pad_token_id", None) or 0
    if name in PICTURES:
        size = theirs.config.image_size
        height, width = size if isinstance(size, list) else (size, size)
        pictures = torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(2), dtype=theirs.dtype)
        return (pictures,), {}, {"pixel_values": pictures}, None, None
    if name in TEXT:
        ids, layout, exists = batch(side, pad)
        how = {"input_ids": ids, "attention_mask": exists.long()}
        if takes_positions(theirs):
            how["position_ids"] = (exists.long().cumsum(-1) - 1).clamp(min=0) + first_position(theirs)
        return (ids,), {"layout": layout}, how, exists, None
    written, layout, exists = batch(side, pad)
    written, exists = written[[1, 2, 0], :9], exists[[1, 2, 0], :9]
    layout = limelight.Padded(exists.sum(-1), side=side)
    how = {"decoder_input_ids": written, "decoder_attention_mask": exists.long()}
    if theirs.config.model_type == "whisper":  # the whole of a sound is heard, silence included
        sound = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(2), dtype=theirs.dtype)
        ours = {"source": sound, "layout": layout}
        return (written,), ours, how | {"input_features": sound}, exists, torch.ones(3, 10, dtype=torch.bool)
    source, source_layout, heard = batch(side, pad)
    ours = {"source": source, "source_layout": source_layout, "layout": layout}
    return (written,), ours, how | {"input_ids": source, "attention_mask": heard.long()}, exists, heard


def first_position(model):
    """RoBERTa numbers its positions from behind that of padding."""
    return model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0


def takes_positions(model):
    """Whether the model takes ``position_ids``, so that padding may be at the left."""
    return "position_ids" in inspect.signature(model.forward).parameters
