"""Start a function in several processes that form one process group."""

import os
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

PRELOADED = [
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "limelight.distributed",
    "limelight.training.loop",
    "support.networks",
]


def run_processes(function, count, *arguments, timeout=120, ended=()):
    """Call ``function(*arguments)`` on each of ``count`` gloo processes; the results that they return, by rank.

    Args:
        function: of a module.
        count: the number of processes.
        arguments: of the function.
        timeout: seconds after which all are ended.
        ended: ranks that are expected to be killed, or to end themselves; their result is ``None``.

    Raises:
        AssertionError: the processes had not ended in time.
        torch.multiprocessing.ProcessRaisedException: one failed, with its traceback.
    """
    # a server that has imported everything makes each process by fork
    multiprocessing.set_forkserver_preload(PRELOADED)
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # outlives every rank, as torchrun's
    with tempfile.TemporaryDirectory() as folder:
        started = multiprocessing.start_processes(
            _begin, (function, count, folder, store.port, timeout, arguments), count, False, start_method="forkserver"
        )
        end = time.monotonic() + timeout
        try:
            while any(process.is_alive() for process in started.processes) if ended else not started.join(timeout=1):
                assert time.monotonic() < end, f"{function.__name__} on {count} processes took more than {timeout} s"
                time.sleep(0.1 if ended else 0)
        finally:
            for process in started.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        files = [Path(folder) / f"{rank}.pt" for rank in range(count)]
        return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _begin(rank, function, count, folder, port, timeout, arguments):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    store = dist.TCPStore("localhost", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=timeout))
    try:
        dist.barrier()  # else one may end while another still connects
        result = function(*arguments)
    finally:
        dist.destroy_process_group()
    torch.save(result, os.path.join(folder, f"{rank}.pt"))
