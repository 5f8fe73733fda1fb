"""Start a function in several processes that form one process group."""

import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

PRELOADED = ["torch.distributed.tensor.parallel", "torch.distributed.fsdp", "limelight", "limelight.distributed"]


def run_processes(function, count, *arguments, timeout=120):
    """Call ``function(*arguments)`` on each of ``count`` gloo processes; the results that they return, by rank.

    Raises:
        AssertionError: the processes had not ended in time; they are ended.
        torch.multiprocessing.ProcessRaisedException: one failed, with its traceback.
    """
    # a server that has imported everything makes each process by fork
    multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        started = multiprocessing.start_processes(
            _begin, (function, count, folder, timeout, arguments), count, join=False, start_method="forkserver"
        )
        end = time.monotonic() + timeout
        try:
            while not started.join(timeout=1):
                assert time.monotonic() < end, f"{function.__name__} on {count} processes took more than {timeout} s"
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(count)]


def _begin(rank, function, count, folder, timeout, arguments):
    torch.set_num_threads(1)
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(count)
    store = dist.FileStore(os.path.join(folder, "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=timeout))
    try:
        result = function(*arguments)
    finally:
        dist.destroy_process_group()
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
