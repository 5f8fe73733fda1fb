"""Shared by all tests: two profiles of hypothesis, and the folder of this file on the path."""

import os
import sys
from pathlib import Path

import torch
from hypothesis import HealthCheck, settings

sys.path.insert(0, str(Path(__file__).parent))

quiet = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
settings.register_profile("short", max_examples=100, deadline=None, derandomize=True, suppress_health_check=quiet)
settings.register_profile("long", max_examples=2000, deadline=None, suppress_health_check=quiet)
settings.load_profile(os.environ.get("LIMELIGHT_TESTS", "short"))
torch.set_num_threads(min(2, os.cpu_count() or 1))
