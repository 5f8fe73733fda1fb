"""Limelight underneath other people's models, without a change to them.

- `limelight.integrations.transformers`: any model of Hugging Face transformers that uses its attention registry;
- `limelight.integrations.torch`: any model that calls ``torch.nn.functional.scaled_dot_product_attention``;
- `limelight.integrations.vllm`: any model that vLLM serves on CPUs, as a plugin that vLLM finds by itself;
- `limelight.integrations.kvpress`: scores for its presses, which evict cached keys.

The first two report which calls Limelight computed, which it left, and why (`limelight.integrations.account`).
"""
