"""Limelight underneath other people's models, without a change to them.

- `limelight.integrations.transformers`: any model of Hugging Face transformers that uses its attention registry;
- `limelight.integrations.torch`: any model that calls ``torch.nn.functional.scaled_dot_product_attention``.

Both tell what they took over, what they did not, and why (`limelight.integrations.account`).
"""
