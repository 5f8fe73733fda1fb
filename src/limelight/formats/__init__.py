"""File formats of weights and tokenizers, and the rules that rename their keys; nothing here builds a model."""
