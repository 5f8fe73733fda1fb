"""Every family of transformers that its default configuration lets shrink, against its own eager attention.

``python tests/integrations/every_family.py [family ...]`` takes minutes, so no test runs it. A line for each family:

- ``agrees``, ``DIFFERS``: the outputs at real tokens, relative to the largest, and whether greedy generation is equal;
- ``own``: it has attention of its own, outside the registry, which `limelight.integrations.transformers.report` says;
- ``refused``: Limelight raised, with the reason;
- ``unbuilt``: it could not be built or run small with eager attention, which says nothing about Limelight.
"""

import re
import signal
import sys
import warnings
from collections import Counter

import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

from limelight import BackendError
from limelight.integrations.transformers import account, enable, report

MAX_PARAMETERS, MAX_SECONDS = 40_000_000, 25
SMALL = {
    r"vocab_size$": 64,
    r"(^|_)(hidden_size|d_model|n_embd|embed_dim|dim|word_embed_proj_dim|embedding_size)$": 32,
    r"(intermediate_size|intermediate_size_mlp|ffn_dim|d_ff|n_inner|ffn_hidden_size)$": 48,
    r"(moe_intermediate_size|shared_expert_intermediate_size|shared_expert_size)$": 24,
    r"(num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_decoder_layers)$": 2,
    r"(num_attention_heads|n_heads?|num_heads|attention_heads)$": 4,
    r"(num_key_value_heads|n_head_kv)$": 2,
    r"(head_dim|d_kv|qk_rope_head_dim|qk_nope_head_dim|rotary_dim|mamba_d_state|state_size)$": 8,
    r"(qk_head_dim|index_head_dim|kv_lora_rank|q_lora_rank|image_size)$": 16,
    r"(max_position_embeddings|n_positions|max_target_positions|max_source_positions)$": 64,
    r"(num_local_experts|num_experts|n_routed_experts|moe_num_experts|sliding_window|local_attention)$": 4,
    r"(attention_chunk_size|patch_size|index_topk)$": 4,
    r"(num_experts_per_tok|moe_topk|moe_k|index_n_heads)$": 2,
    r"(n_group|topk_group|n_shared_experts|first_k_dense_replace)$": 1,
    r"^pad_token_id$": 0,
    r"^(bos_token_id|decoder_start_token_id)$": 1,
    r"^eos_token_id$": 2,
}
TOKENS = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(3))
REAL = torch.arange(11) >= torch.tensor([0, 4, 7])[:, None]


def shrunk(config):
    """The configuration with every size that it names made small."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            shrunk(value)
        elif name == "layer_types" and isinstance(value, list):
            config.layer_types = (list(dict.fromkeys(value)) * 2)[:2]
        elif type(value) is int or name == "eos_token_id":
            small = next((size for pattern, size in SMALL.items() if re.search(pattern, name)), value)
            setattr(config, name, small)
    if getattr(config, "kv_lora_rank", None) is not None and hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads, config.v_head_dim = config.num_attention_heads, 8
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict) and re.search("vl|4v|46v|image|ocr|glmga", config.model_type):
        rope["mrope_section"] = [1, 1, 0] if rope.get("partial_rotary_factor", 1.0) < 1 else [2, 1, 1]
    return config


def built(family, kind):
    """The family's model with random weights large enough to matter."""
    config = shrunk(CONFIG_MAPPING[family]())
    config._attn_implementation = config._experts_implementation = "eager"
    with torch.device("meta"):
        size = sum(p.numel() for p in getattr(transformers, kind)(config).parameters())
    if size > MAX_PARAMETERS:
        raise MemoryError(f"{size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise * 0.25 if parameter.dim() > 1 else parameter.data + noise * 0.1
    model.tie_weights()
    return model


def output(model):
    """The first output, at real tokens."""
    generator = torch.Generator().manual_seed(2)
    real = slice(None)
    if model.main_input_name == "pixel_values":
        size = model.config.image_size
        size = size if isinstance(size, int) else size[0]
        arguments = {"pixel_values": torch.randn(2, model.config.num_channels, size, size, generator=generator)}
    elif model.main_input_name == "input_values":
        arguments = {"input_values": torch.randn(2, 4000, generator=generator)}
    elif model.main_input_name == "input_features":
        arguments = {"input_features": torch.randn(2, model.config.num_mel_bins, 128, generator=generator)}
    else:
        arguments = {"input_ids": TOKENS, "attention_mask": REAL.long()}
        real = REAL
    if model.config.is_encoder_decoder:
        arguments["decoder_input_ids"] = TOKENS[: len(next(iter(arguments.values()))), :8]
        real = slice(None)
    torch.manual_seed(3)  # some draw what they hide from themselves
    with torch.no_grad():
        first = model(**arguments)[0]
    return first[real] if isinstance(real, slice) or first.shape[:2] == real.shape else first


def generated(model):
    start = {"decoder_start_token_id": 1} if model.config.is_encoder_decoder else {}
    return model.generate(TOKENS, attention_mask=REAL.long(), max_new_tokens=8, do_sample=False, **start)


def outcome(family, kind):
    """``(verdict, details)`` of one family."""
    try:
        model = built(family, kind)
        eager = output(model)
    except Exception as error:
        return "unbuilt", f"{type(error).__name__}: {error}"
    model.set_attn_implementation("limelight")
    try:
        with account() as calls:
            ours = output(model)
    except BackendError as error:
        return "refused", str(error)
    if not calls.taken:
        return "own", next(iter(report(model).own.values()), "no attention")
    error = ((eager - ours).abs().max() / eager.abs().max()).item()
    details = [f"{calls.taken.total()} calls", f"off by {error:.1e}", *calls.notes]
    good = error < 3e-5
    if model.can_generate() and model.main_input_name == "input_ids":
        found = generated(model)
        model.set_attn_implementation("eager")
        same = torch.equal(found, generated(model))
        details.insert(2, "generates the same" if same else "GENERATES ANOTHER TEXT")
        good &= same
    return "agrees" if good else "DIFFERS", ", ".join(details)


def families():
    """Each family with the model that shows most of it."""
    found = {}
    for table in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        auto.MODEL_MAPPING_NAMES,
    ):
        for family, kind in table.items():
            found.setdefault(family, kind if isinstance(kind, str) else kind[0])
    return found


def too_long(*_):
    raise TimeoutError(f"more than {MAX_SECONDS} seconds")


def main(chosen):
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    enable()
    signal.signal(signal.SIGALRM, too_long)
    verdicts = Counter()
    for family, kind in sorted(families().items()):
        if chosen and family not in chosen:
            continue
        signal.alarm(MAX_SECONDS)
        try:
            verdict, details = outcome(family, kind)
        except Exception as error:
            verdict, details = "DIFFERS", f"{type(error).__name__}: {error}"
        signal.alarm(0)
        verdicts[verdict] += 1
        print(f"{verdict:8} {family:32} {' '.join(details.split())[:160]}", flush=True)
    print(", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common()))
    return int(verdicts["DIFFERS"] > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
