"""Small models of many families of transformers, with random weights large enough to matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import transformers

# Two layers of width 32 with four heads, in each of the words that the configurations use.
TEXT = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
GROUPED = TEXT | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 16}
BART = {
    "vocab_size": 60, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
    "forced_eos_token_id": None, "forced_bos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 0, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}


@dataclass(frozen=True)
class Family:
    """How one family is built small."""

    config: str
    model: str
    settings: dict[str, Any]

    def build(self) -> Any:
        """The model, in float32, with eager attention."""
        config = getattr(transformers, self.config)(**self.settings)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"  # the only one that knows float64
        torch.manual_seed(0)
        model = getattr(transformers, self.model)(config).eval()
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = noise * 0.25 if parameter.dim() > 1 else parameter.data + noise * 0.1
        model.tie_weights()
        return model


DECODERS = {
    "gpt2": Family("GPT2Config", "GPT2LMHeadModel", {
        "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": None, "pad_token_id": 0}),
    "gpt_neox": Family("GPTNeoXConfig", "GPTNeoXForCausalLM", TEXT),
    "gpt_bigcode": Family("GPTBigCodeConfig", "GPTBigCodeForCausalLM", {
        "vocab_size": 60, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1,
        "eos_token_id": None, "pad_token_id": 0}),
    "opt": Family("OPTConfig", "OPTForCausalLM", TEXT | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "biogpt": Family("BioGptConfig", "BioGptForCausalLM", TEXT),
    "llama": Family("LlamaConfig", "LlamaForCausalLM", GROUPED),
    "mistral, window 4": Family("MistralConfig", "MistralForCausalLM", GROUPED | {"sliding_window": 4}),
    "mixtral": Family("MixtralConfig", "MixtralForCausalLM", GROUPED | {"num_local_experts": 4, "sliding_window": 5}),
    "gemma": Family("GemmaConfig", "GemmaForCausalLM", WIDE),
    "gemma2": Family("Gemma2Config", "Gemma2ForCausalLM", WIDE | TWO_KINDS | {"attn_logit_softcapping": 2.0}),
    "gemma3": Family("Gemma3TextConfig", "Gemma3ForCausalLM", WIDE | TWO_KINDS),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", GROUPED | {
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", WIDE),
    "qwen3_moe": Family("Qwen3MoeConfig", "Qwen3MoeForCausalLM", WIDE | EXPERTS),
    "phi": Family("PhiConfig", "PhiForCausalLM", GROUPED),
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", GROUPED | {"sliding_window": 5}),
    "stablelm": Family("StableLmConfig", "StableLmForCausalLM", GROUPED),
    "starcoder2": Family("Starcoder2Config", "Starcoder2ForCausalLM", GROUPED | {"sliding_window": 4}),
    "olmo2": Family("Olmo2Config", "Olmo2ForCausalLM", GROUPED),
    "olmoe": Family("OlmoeConfig", "OlmoeForCausalLM", GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "cohere": Family("CohereConfig", "CohereForCausalLM", GROUPED),
    "cohere2": Family("Cohere2Config", "Cohere2ForCausalLM", GROUPED | TWO_KINDS),
    "granite": Family("GraniteConfig", "GraniteForCausalLM", GROUPED | {"attention_multiplier": 0.2}),
    "gpt_oss, sinks": Family("GptOssConfig", "GptOssForCausalLM", WIDE | TWO_KINDS | {
        "num_local_experts": 4, "num_experts_per_tok": 2}),
    "llama4, chunks of 4": Family("Llama4TextConfig", "Llama4ForCausalLM", WIDE | {
        "attention_chunk_size": 4, "intermediate_size_mlp": 48, "num_local_experts": 2,
        "num_experts_per_tok": 1, "no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]}),
    "deepseek_v3": Family("DeepseekV3Config", "DeepseekV3ForCausalLM", TEXT | {
        "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "qk_nope_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 24}),
    "modernbert_decoder": Family("ModernBertDecoderConfig", "ModernBertDecoderForCausalLM", TEXT | {
        "global_attn_every_n_layers": 2, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2}),
    "granitemoe": Family("GraniteMoeConfig", "GraniteMoeForCausalLM", GROUPED | {
        "num_local_experts": 4, "num_experts_per_tok": 2}),
    "smollm3": Family("SmolLM3Config", "SmolLM3ForCausalLM", GROUPED),
    "glm4": Family("Glm4Config", "Glm4ForCausalLM", WIDE),
    "exaone4": Family("Exaone4Config", "Exaone4ForCausalLM", GROUPED | TWO_KINDS),
    "doge": Family("DogeConfig", "DogeForCausalLM", GROUPED | {"keep_window_size": 64}),
    "diffllama": Family("DiffLlamaConfig", "DiffLlamaForCausalLM", GROUPED),
    "granite_swa, sinks": Family("GraniteSWAConfig", "GraniteSWAForCausalLM", GROUPED | TWO_KINDS),
    "mimo_v2_flash, some sinks": Family("MiMoV2FlashConfig", "MiMoV2FlashForCausalLM", WIDE | TWO_KINDS | EXPERTS),
    "jamba": Family("JambaConfig", "JambaForCausalLM", GROUPED | {
        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
        "num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "use_mamba_kernels": False}),
    "qwen3_next": Family("Qwen3NextConfig", "Qwen3NextForCausalLM", WIDE | EXPERTS | {
        "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "shared_expert_intermediate_size": 24}),
    "nemotron": Family("NemotronConfig", "NemotronForCausalLM", GROUPED),
    "helium": Family("HeliumConfig", "HeliumForCausalLM", GROUPED | {"head_dim": 8}),
    "seed_oss": Family("SeedOssConfig", "SeedOssForCausalLM", WIDE),
    "lfm2": Family("Lfm2Config", "Lfm2ForCausalLM", GROUPED | {"layer_types": ["conv", "full_attention"]}),
    "apertus": Family("ApertusConfig", "ApertusForCausalLM", GROUPED),
    "vaultgemma": Family("VaultGemmaConfig", "VaultGemmaForCausalLM", WIDE | TWO_KINDS | {
        "attn_logit_softcapping": 2.0}),
    "inkling2, sinks of queries": Family("Inkling2TextConfig", "Inkling2ForCausalLM", WIDE | {
        "unpadded_vocab_size": 60, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16,
        "layer_types": ["hybrid_sliding", "hybrid"], "sliding_window_size": 4, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "moe_intermediate_size": 48}),
    "persimmon": Family("PersimmonConfig", "PersimmonForCausalLM", TEXT),
    "deepseek_v32": Family("DeepseekV32Config", "DeepseekV32ForCausalLM", TEXT | {
        "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 12,
        "qk_nope_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 2,
        "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 24,
        "index_topk": 4, "index_n_heads": 2, "index_head_dim": 16}),
}  # fmt: skip

ENCODERS = {
    "bert": Family("BertConfig", "BertForMaskedLM", TEXT),
    "roberta": Family("RobertaConfig", "RobertaForMaskedLM", TEXT),
    "distilbert": Family("DistilBertConfig", "DistilBertForMaskedLM", {
        "vocab_size": 60, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}),
    "albert": Family("AlbertConfig", "AlbertForMaskedLM", TEXT | {"embedding_size": 16}),
    "electra": Family("ElectraConfig", "ElectraForMaskedLM", TEXT | {"embedding_size": 16}),
    "modernbert": Family("ModernBertConfig", "ModernBertForMaskedLM", TEXT | {
        "global_attn_every_n_layers": 2, "local_attention": 6, "cls_token_id": 1, "sep_token_id": 2}),
    "esm": Family("EsmConfig", "EsmForMaskedLM", TEXT | {"position_embedding_type": "rotary", "mask_token_id": 3}),
    "eurobert": Family("EuroBertConfig", "EuroBertForMaskedLM", GROUPED),
    "clip text": Family("CLIPTextConfig", "CLIPTextModel", TEXT | {"eos_token_id": 2}),
    "siglip text": Family("SiglipTextConfig", "SiglipTextModel", TEXT),
}  # fmt: skip

ENCODER_DECODERS = {
    "bart": Family("BartConfig", "BartForConditionalGeneration", BART),
    "mbart": Family("MBartConfig", "MBartForConditionalGeneration", BART),
    "marian": Family("MarianConfig", "MarianMTModel", BART | {"decoder_vocab_size": 60}),
    "pegasus": Family("PegasusConfig", "PegasusForConditionalGeneration", BART),
    "blenderbot": Family("BlenderbotConfig", "BlenderbotForConditionalGeneration", BART),
    "t5": Family("T5Config", "T5ForConditionalGeneration", T5),
    "t5, gated": Family("T5Config", "T5ForConditionalGeneration", T5 | {
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": Family("MT5Config", "MT5ForConditionalGeneration", T5),
    "umt5": Family("UMT5Config", "UMT5ForConditionalGeneration", T5),
    "switch": Family("SwitchTransformersConfig", "SwitchTransformersForConditionalGeneration", T5 | {
        "num_experts": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1, "num_decoder_layers": 2}),
    "longt5": Family("LongT5Config", "LongT5ForConditionalGeneration", T5),
    "t5gemma": Family("T5GemmaConfig", "T5GemmaForConditionalGeneration", {
        "encoder": WIDE | TWO_KINDS | {"attn_logit_softcapping": 2.0},
        "decoder": WIDE | TWO_KINDS | {"attn_logit_softcapping": 2.0, "cross_attention_hidden_size": 32},
        "vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "m2m_100": Family("M2M100Config", "M2M100ForConditionalGeneration", BART),
}  # fmt: skip

IMAGES = {
    "vit": Family("ViTConfig", "ViTModel", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 16, "patch_size": 4}),
    "dinov2": Family("Dinov2Config", "Dinov2Model", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 16, "patch_size": 4}),
    "siglip vision": Family("SiglipVisionConfig", "SiglipVisionModel", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 16, "patch_size": 4}),
    "clip vision": Family("CLIPVisionConfig", "CLIPVisionModel", {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "image_size": 16, "patch_size": 4}),
    "swin": Family("SwinConfig", "SwinModel", {
        "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "image_size": 32, "patch_size": 2, "window_size": 4}),
}  # fmt: skip
