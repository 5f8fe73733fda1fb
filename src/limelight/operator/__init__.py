"""The operator: checks a call, chooses a backend, runs it, differentiates it, and registers it with PyTorch."""
