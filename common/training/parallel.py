"""Several GPUs or processes: DataParallel, DistributedDataParallel, or trainings side by side.

Only the forward pass sees a wrapper: saving, counting and Grad-CAM use the bare network. Each step
and each evaluation is partitioned exactly: every process takes every `size`-th image.
"""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from multiprocessing import forkserver
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import job
from common.errors import UserError
from common.job import rank, say, size
from common.training.watch import NotFinite

WAIT = timedelta(hours=2)  # of processes for each other; the first alone makes the baselines
# A server that has loaded PyTorch once starts each process of `side_by_side` in no time.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "torchvision", "common.training.runs", "scipy.stats"])


def pick_device(name: str, gpus: int = 0, threads: int | None = None) -> torch.device:
    """The device of this process, from `--device`, `--gpus` and torchrun's local rank.

    If `threads` is given, PyTorch is set to use that many CPU threads.
    """
    if threads:
        torch.set_num_threads(threads)
    seen = torch.cuda.device_count()
    if gpus and size() > 1:
        raise UserError("--gpus is for one process; with torchrun give --nproc-per-node instead")
    if gpus > seen:
        raise UserError(f"--gpus {gpus}: torch sees {seen} GPU(s); try --gpus {seen}")
    if gpus and name in ("cpu", "mps"):
        raise UserError(f"--gpus {gpus} and --device {name} contradict each other; leave one out")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; try --device cpu")
    if name == "mps":
        return _mac_gpu()
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if size() == 1:
        return torch.device("cuda")
    if int(os.environ["LOCAL_WORLD_SIZE"]) > seen:
        raise UserError(
            f"torchrun --nproc-per-node: torch sees {seen} GPU(s) here; start at most that many"
            " processes per machine, or choose --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def _mac_gpu() -> torch.device:
    if not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no Mac GPU here; try --device cpu")
    if size() > 1:  # neither gloo nor nccl moves its tensors
        raise UserError("--device mps is for one process; with torchrun choose --device cpu")
    say("--device mps: never tested on a Mac's GPU; float64 is computed on the CPU")
    return torch.device("mps")


def start(device: torch.device) -> None:
    """Join the other processes of the job, if there are any: by nccl on GPUs, gloo on CPUs."""
    if size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)


def stop() -> None:
    """Leave the job."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(network: nn.Module, device: torch.device, gpus: int) -> nn.Module:
    """The module that training calls for its forward pass: the network itself or its wrapper."""
    if dist.is_initialized():
        ids = [device.index] if device.type == "cuda" else None
        # `share_buffers` sends the buffers before an evaluation, so no step has to.
        how = {"forward_sync_buffers": False, "gradient_as_bucket_view": True}
        warnings.filterwarnings("ignore", "Grad strides")  # 1x1 kernels have two ways to write them
        return nn.parallel.DistributedDataParallel(network, device_ids=ids, **how)
    if gpus > 1:
        say(f"DataParallel on {gpus} GPUs; torch recommends DistributedDataParallel (torchrun)")
        return nn.DataParallel(network, device_ids=list(range(gpus)))
    return network


def total(values: list[float], device: torch.device) -> list[float]:
    """The sum of each value over all processes."""
    if not dist.is_initialized():
        return values
    summed: Tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(summed)
    return summed.tolist()


def gather(value) -> list:
    """The `value` of every process, by rank."""
    values = [value] * size()
    if dist.is_initialized():
        dist.all_gather_object(values, value)
    return values


def broadcast(decide: Callable[[], object]):
    """Call `decide()` on the first process; all return its result or raise its UserError."""
    decided = [None]
    if rank() == 0:
        try:
            decided = [decide()]
        except UserError as error:
            decided = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(decided)
    if isinstance(decided[0], UserError):
        raise decided[0]
    return decided[0]


def share_buffers(network: nn.Module) -> None:
    """Copy the first process's buffers to all: batch norm has averaged each one's own images."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def wait() -> None:
    """Wait until all processes have reached this call."""
    if dist.is_initialized():
        dist.barrier()


def load_server() -> None:
    """Start the server of `side_by_side`, which loads PyTorch for seconds; Ctrl-C spares it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def side_by_side(
    trainings: Mapping[str, Callable[[], object]], after: Mapping[str, str], jobs: int
) -> Iterator[tuple[str, object]]:
    """Call picklable functions in new processes, in their order, at most `jobs` at a time.

    Yields (name, result) as each call ends; the result is the returned value or the NotFinite that
    was raised. Any other UserError, or a process that dies, stops the others. `after` maps a name
    to another one that has to end first. Printed lines begin with the name. On two cores two
    processes of one thread do more than one of two threads, which wait for each other after every
    small operation.
    """
    waiting, working, threads = list(trainings), {}, max(1, torch.get_num_threads() // jobs)
    load_server()
    try:
        while waiting or working:
            unfinished = {*waiting, *(name for name, _ in working.values())}
            ready = [name for name in waiting if after.get(name) not in unfinished]
            for name in ready[: jobs - len(working)]:
                pipe, its_end = SERVER.Pipe(duplex=False)
                arguments = (its_end, name, trainings[name], threads)
                process = SERVER.Process(target=_train, args=arguments, daemon=True)
                process.start()
                its_end.close()
                working[pipe] = (name, process)
                waiting.remove(name)
            for pipe in multiprocessing.connection.wait(list(working)):
                name, process = working[pipe]
                try:
                    result = pipe.recv()
                except EOFError:
                    why = "see its message above; without one memory was short: start fewer"
                    raise UserError(f"{name}: its process has ended; {why}") from None
                if isinstance(result, UserError) and not isinstance(result, NotFinite):
                    raise result
                process.join()
                del working[pipe]
                yield name, result
    finally:
        for _, process in working.values():
            process.terminate()  # it saves first
        for _, process in working.values():
            process.join()


def _train(pipe: Connection, name: str, train: Callable[[], object], threads: int) -> None:
    os.setpgrp()  # Ctrl-C on a terminal then reaches us once, through the parent
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    job.prefix = f"{name}: "
    try:
        pipe.send(train())
    except UserError as error:
        pipe.send(error)
    except KeyboardInterrupt:
        sys.exit(1)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()  # however that ended
    os._exit(1)


def launch(processes: int, function: Callable, *args) -> list:
    """Call a picklable function in all processes of a new job; returns the results by rank."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    calls = {
        f"process {place}": partial(_as_rank, place, processes, port, function, *args)
        for place in range(processes)
    }
    results = dict(side_by_side(calls, {}, processes))
    for result in results.values():
        if isinstance(result, NotFinite):
            raise result
    return [results[name] for name in calls]


def _as_rank(place: int, count: int, port: int, function: Callable, *args) -> object:
    variables = {"RANK": place, "LOCAL_RANK": place, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    return function(*args)
