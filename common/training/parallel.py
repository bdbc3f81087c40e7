"""Several GPUs or processes: DataParallel in one process, DistributedDataParallel under torchrun.

Only the forward pass sees a wrapper: saving, counting and Grad-CAM use the bare network. Each step
and each evaluation is partitioned exactly: every process takes every `size`-th image.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import cli, job
from common.errors import GO_ON, Stopped, UserError
from common.job import rank, say, size

JOIN_SECONDS = 90  # that processes wait for each other
SILENT_SECONDS = 5  # of these, before they say so


def add_flag(parser: cli.Parser) -> None:
    """`--gpus N`."""
    meaning = "N GPUs in one process by DataParallel; 0: what --device says"
    parser.add("--gpus", type=cli.whole, default=0, metavar="N", help=meaning)


def pick_device(name: str, gpus: int = 0, threads: int | None = None) -> torch.device:
    """The device of this process: of `--device` and `--gpus`, and of torchrun's local rank.

    A CPU is told to use the `--threads`.

    Raises:
        UserError: no GPU or fewer than asked for, or both torchrun and `--gpus`.
    """
    if threads:
        torch.set_num_threads(threads)
    name = "cuda" if gpus and name == "auto" else name
    seen = torch.cuda.device_count()
    if gpus and size() > 1:
        raise UserError("--gpus is for one process; under torchrun --nproc-per-node says how many")
    if gpus > seen:
        raise UserError(f"--gpus {gpus}: torch sees {seen} here; try --gpus {seen} or --device cpu")
    if gpus and name == "cpu":
        raise UserError(f"--gpus {gpus} and --device cpu contradict each other; leave one out")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; try --device cpu")
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and size() > 1:
        local = int(os.environ["LOCAL_RANK"])
        if local >= seen:
            raise UserError(
                f"torchrun --nproc-per-node: torch sees {seen} GPU(s) here; start at most that many"
                " processes a machine, or --device cpu"
            )
        return torch.device("cuda", local)
    return device


def start(device: torch.device) -> None:
    """Join the other processes of the job, where there are any: nccl on GPUs, gloo on CPUs.

    Raises:
        UserError: they do not come.
    """
    if size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    met: queue.SimpleQueue = queue.SimpleQueue()
    # In a thread of its own: no signal would get through to a call that waits in C++.
    threading.Thread(target=_meet, args=(device, met), daemon=True).start()
    try:
        store = _first_of(met, where)
    except (RuntimeError, ValueError, OSError, queue.Empty) as error:
        reason = str(error).splitlines()[0] if str(error) else f"not within {JOIN_SECONDS} s"
        job.tells_error = lambda _otherwise: True  # each is alone
        raise UserError(
            f"not all {size()} processes of this job came to {where} ({reason}); start them with"
            f" torchrun, or unset {', '.join(job.VARIABLES)}"
        ) from None
    job.joined, job.tells_error = True, partial(_is_first_to_tell, store)


def _meet(device: torch.device, met: queue.SimpleQueue) -> None:
    """Put the store that all processes of the job share, once they have joined, or the error."""
    most = timedelta(seconds=2 * JOIN_SECONDS)  # C++ prints as it gives up: by then we have ended
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=most))
        store.set(f"here/{rank()}", "")
        store.wait([f"here/{other}" for other in range(size())], most)
        store.set_timeout(dist.default_pg_timeout)
        store, backend = dist.PrefixStore("job", store), "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=size())
        met.put(store)
    except Exception as error:
        met.put(error)


def _first_of(met: queue.SimpleQueue, where: str) -> dist.Store:
    try:
        store = met.get(timeout=SILENT_SECONDS)
    except queue.Empty:
        waits = f"process {rank()} waits at {where} for the {size()} of its job"
        print(f"{waits}, for {JOIN_SECONDS} s", file=sys.stderr, flush=True)
        store = met.get(timeout=JOIN_SECONDS - SILENT_SECONDS)
    if isinstance(store, Exception):
        raise store
    return store


def _is_first_to_tell(store: dist.Store, otherwise: bool = False) -> bool:
    try:
        return store.add("told", 1) == 1
    except RuntimeError:  # the process that kept the store has ended
        return otherwise


def stop() -> None:
    """Leave the job."""
    if dist.is_initialized():
        dist.destroy_process_group()


def wrap(network: nn.Module, device: torch.device, gpus: int) -> nn.Module:
    """What the forward pass of training goes through: the network itself, or a wrapper of it."""
    if dist.is_initialized():
        ids = [device.index] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(network, device_ids=ids)
    if gpus > 1:
        say(f"DataParallel on {gpus} GPUs; torch recommends DistributedDataParallel: torchrun")
        return nn.DataParallel(network, device_ids=list(range(gpus)))
    return network


def process_share() -> slice:
    """Which of a list of images are this process's."""
    return slice(rank(), None, size())


def check_images(images: int) -> None:
    """Every process needs an image in every step.

    Raises:
        UserError: more processes than images.
    """
    if images < size():
        raise UserError(f"torchrun: {size()} processes for {images} images; start fewer")


def total(values: list[float], device: torch.device) -> list[float]:
    """Sums over all processes."""
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
    """What `decide()` returns on the first process, the same on all."""
    decided = [decide() if rank() == 0 else None]
    if dist.is_initialized():
        dist.broadcast_object_list(decided)
    return decided[0]


def share_buffers(network: nn.Module) -> None:
    """Give every process the first one's buffers: batch norm has averaged each process's images."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def wait() -> None:
    """Return once all processes are here."""
    if dist.is_initialized():
        dist.barrier()


def launch(processes: int, function, *args) -> dict[int, object]:
    """Call `function(*args)` in so many new processes on this machine; their results by rank.

    What `torchrun --standalone` does, for a function that can be pickled.

    Raises:
        ChildFailedError: a process failed; the others are stopped.
        Stopped: after Ctrl-C or SIGTERM, once all have ended.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException  # slow to import
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # torch warns where it has to draw a run_id.
    meeting = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": "run"}
    config = LaunchConfig(1, 1, processes, **meeting, start_method="spawn", max_restarts=0)
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        return elastic_launch(config, _call_apart)(function, *args)
    except SignalException as stop:
        raise Stopped(stop.sigval, GO_ON) from None
    finally:
        for number, handler in handlers.items():  # it sets its own, and leaves them
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _call_apart(function, *args):
    os.setpgrp()  # Ctrl-C on a terminal reaches the parent, which passes it on, and not us twice
    job.end_with_parent()
    return function(*args)
