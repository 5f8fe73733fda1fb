"""Observation inside vLLM's workers: which requests a step computes, and the methods that return what was observed."""

from __future__ import annotations

import atexit
import functools
import os
from typing import Any

from vllm.v1.worker.worker_base import WorkerBase, WorkerWrapperBase

from .serving_observe import FIELD, Record, Records

#: The records of this worker process; ``None`` where ``LIMELIGHT_OBSERVE`` is not set.
records: Records | None = None


def install() -> None:
    """Let vLLM's workers keep records of the requests that ``LIMELIGHT_OBSERVE`` chooses; once in each process.

    Raises:
        ArgumentError: ``LIMELIGHT_OBSERVE`` or one of its companions is not what it should be.
    """
    if installed() or Records.from_environment(os.environ) is None:
        return
    WorkerBase.limelight_requests = _requests
    WorkerBase.limelight_request = _request
    execute = WorkerWrapperBase.execute_model

    @functools.wraps(execute)
    def execute_model(self: Any, scheduler_output: Any) -> Any:
        _begin(self.worker, scheduler_output)
        return execute(self, scheduler_output)

    WorkerWrapperBase.execute_model = execute_model


def installed() -> bool:
    """Whether workers of this process keep records."""
    return hasattr(WorkerBase, "limelight_requests")


def chosen(layer: str, rows: int) -> dict[int, Record] | None:
    """The rows of a batch of ``rows`` texts that are observed in a layer, with their records."""
    return None if records is None else records.chosen(layer, rows)


def _begin(worker: Any, scheduled: Any) -> None:
    """Note the requests that begin and that have ended with this step."""
    global records
    if records is None:
        records = Records.from_environment(os.environ, worker.rank)
        assert records is not None
        atexit.register(records.close)
    runner = worker.model_runner  # of this step: a process may have several engines, one after the other
    records.names = lambda: runner.input_batch.req_ids
    records.generated = lambda name: runner.requests[name].output_token_ids if name in runner.requests else ()
    for name in scheduled.finished_req_ids:
        records.finish(name)
    for new in scheduled.scheduled_new_reqs:
        asked = getattr(new.sampling_params, "extra_args", None) or {}
        records.begin(new.req_id, new.prompt_token_ids or (), new.num_computed_tokens, asked.get(FIELD))


def _requests(worker: Any) -> list[dict[str, Any]]:
    """The requests of which this worker has observations, the oldest first."""
    return [] if records is None else records.list()


def _request(worker: Any, name: str) -> dict[str, Any] | None:
    """What this worker observed of a request; ``None`` where it knows none of this name."""
    return None if records is None else records.find(name)
