"""Limelight underneath other people's models, without a change to them.

- `limelight.integrations.transformers`: any model of Hugging Face transformers that uses its attention registry;
- `limelight.integrations.kvpress`: scores for its presses, which evict cached keys;
- `limelight.integrations.torch`: any model that calls ``torch.nn.functional.scaled_dot_product_attention``.

The first and the last report which calls Limelight computed, which it left, and why (`limelight.integrations.account`).
"""
