"""Checkpoints: safetensors and GGUF, from a folder, a model hub, or a registry package. No pickle, no code."""
