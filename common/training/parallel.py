"""Several GPUs or processes: DataParallel in one process, DistributedDataParallel under torchrun.

Only the forward pass sees a wrapper: saving, counting and Grad-CAM use the bare network. Each step
and each evaluation is partitioned exactly: every process takes every `size`-th image.
"""

import os
import signal
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import cli, job
from common.errors import GO_ON, Stopped, UserError
from common.job import rank, say, size
from common.start import STOP_SIGNALS

JOIN_SECONDS = 90  # that processes wait for each other


def add_flag(parser: cli.Parser) -> None:
    """`--gpus N`."""
    meaning = "N GPUs in one process by DataParallel; 0: what --device says"
    parser.add("--gpus", type=cli.whole, default=0, metavar="N", help=meaning)


def pick_device(name: str, gpus: int = 0, threads: int | None = None) -> torch.device:
    """The device of this process: of `--device` and `--gpus`, and of torchrun's local rank.

    A CPU is told to use the `--threads`.

    Raises:
        UserError: no GPU or fewer than asked for, or torchrun with `--gpus` or a Mac's GPU.
    """
    if threads:
        torch.set_num_threads(threads)
    name = "cuda" if gpus and name == "auto" else name
    seen = torch.cuda.device_count()
    if gpus and size() > 1:
        raise UserError("--gpus is for one process; under torchrun --nproc-per-node says how many")
    if gpus > seen:
        raise UserError(f"--gpus {gpus}: torch sees {seen} here; try --gpus {seen} or --device cpu")
    if gpus and name in ("cpu", "mps"):
        raise UserError(f"--gpus {gpus} and --device {name} contradict each other; leave one out")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; try --device cpu")
    if name == "mps":
        return _mac_gpu()
    device = torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and size() > 1:
        local = int(os.environ["LOCAL_RANK"])
        if local >= seen:
            raise UserError(
                f"torchrun --nproc-per-node: torch sees {seen} GPU(s) here; start at most that many"
                " processes a machine, or --device cpu",
                told_by_all=True,
            )
        return torch.device("cuda", local)
    return device


def _mac_gpu() -> torch.device:
    if not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no Mac's GPU here; try --device cpu")
    if size() > 1:  # neither gloo nor nccl moves its tensors
        raise UserError("--device mps is for one process; take --device cpu under torchrun")
    say("--device mps: a Mac's GPU, on which this program was never run; float64 stays on the CPU")
    return torch.device("mps")


def start(device: torch.device) -> None:
    """Join the other processes of the job, where there are any: nccl on GPUs, gloo on CPUs.

    Raises:
        UserError: they do not come.
    """
    if size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # While C++ waits no handler of Python's would be called: a signal ends the process at once.
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in STOP_SIGNALS}
    try:
        meeting = dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS))
        store, _, _ = next(meeting)
        store.set_timeout(dist.default_pg_timeout)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank(), world_size=size())
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"not all {size()} processes of this job came within {JOIN_SECONDS} s"
            f" ({str(error).splitlines()[0]}); start them with torchrun, or unset RANK and"
            " WORLD_SIZE",
            told_by_all=True,
        ) from None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


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
