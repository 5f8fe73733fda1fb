"""Limelight underneath vLLM, as a plugin: ``vllm serve MODEL`` on CPUs then computes attention by our kernels.

Installed beside vLLM there is nothing to call: vLLM finds the plugin by its entry point, in each of its processes, and
writes a line to its log. The environment variable ``VLLM_PLUGINS``, vLLM's own, names the plugins to load;
``VLLM_PLUGINS=`` (empty) loads none.
"""

from __future__ import annotations

import logging

from vllm.platforms import current_platform
from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

from .._version import __version__
from ..backends import native
from . import vllm_watch

_BACKENDS = "limelight.integrations.vllm_backend"
_log = logging.getLogger("vllm.limelight")


def register() -> None:
    """Put Limelight's attention in the place of vLLM's on CPUs, and offer it as ``CUSTOM`` on GPUs.

    Called by vLLM in each of its processes, before it chooses a backend; calling it again changes nothing. On GPUs
    ``--attention-backend CUSTOM`` chooses it.
    """
    register_backend(AttentionBackendEnum.CPU_ATTN, f"{_BACKENDS}.Backend")
    register_backend(AttentionBackendEnum.CUSTOM, f"{_BACKENDS}.CustomBackend")
    vllm_watch.install()
    if current_platform.is_cpu():
        if native.available():
            _log.info("Limelight %s computes attention (%s).", __version__, native.instruction_set())
        else:
            _log.warning("Limelight %s computes attention, slowly: %s", __version__, native.status())
