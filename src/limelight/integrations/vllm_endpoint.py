"""Routes of vLLM's server that return what was observed of a request.

vLLM adds routes of plugins only where ``VLLM_PLUGINS`` names them: ``VLLM_PLUGINS=limelight``. They lie under ``/v1``,
which ``--api-key`` protects.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request

from .serving_observe import Records, joined

PREFIX = "/v1/limelight"
#: How long the answer to a request may be there before vLLM's workers hear that it has ended, in seconds.
WAIT = 2.0


class Observations:
    """The endpoint plugin: ``GET /v1/limelight/requests`` and ``GET /v1/limelight/requests/ID``."""

    name = "limelight"
    required_tasks = None

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes to the server."""
        router = APIRouter(prefix=PREFIX, tags=["limelight"])
        router.add_api_route("/requests", _requests, methods=["GET"])
        router.add_api_route("/requests/{name}", _request, methods=["GET"])
        app.include_router(router)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Keep the engine that the routes call; the server that renders prompts has none."""
        state.limelight_engine = engine_client


async def _requests(request: Request) -> dict[str, Any]:
    """The requests of which there are observations, the oldest first."""
    parts = await _call(request, "limelight_requests")
    return {"requests": parts[0]}


async def _request(name: str, request: Request) -> dict[str, Any]:
    """What was observed of one request, by the ``id`` of its answer."""
    for _ in range(int(WAIT / 0.1)):
        found = joined(await _call(request, "limelight_request", name))
        if found is not None and found["finished"]:
            return found
        await asyncio.sleep(0.1)
    if found is None:
        raise HTTPException(
            404,
            f"No observations of {name!r}. Give the id of an answer; the request must have been observed: by "
            'LIMELIGHT_OBSERVE, or by its own vllm_xargs, {"limelight_observe": "entropy,top=8"}. Of finished '
            "requests the last ones are kept.",
        )
    return found


async def _call(request: Request, method: str, *args: str) -> list[Any]:
    engine = getattr(request.app.state, "limelight_engine", None)
    if engine is None:
        raise HTTPException(503, "This server computes no attention.")
    if Records.from_environment(os.environ) is None:
        raise HTTPException(503, "This server keeps no observations. Start vLLM with LIMELIGHT_OBSERVE=requests.")
    return list(await engine.collective_rpc(method, args=args))
