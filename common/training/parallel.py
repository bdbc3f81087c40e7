"""Several GPUs or processes: DataParallel in one process, DistributedDataParallel under torchrun.

Only the forward pass sees a wrapper: saving, counting and Grad-CAM use the bare network. Each step
and each evaluation is partitioned exactly: every process takes every `size`-th image.
"""

import os
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import UserError
from common.job import rank, say, size

WAIT = timedelta(minutes=10)  # that processes wait for each other


def pick_device(name: str, gpus: int = 0, threads: int | None = None) -> torch.device:
    """The device of this process: of `--device` and `--gpus`, and of torchrun's local rank.

    A CPU is told to use the `--threads`.
    """
    if threads:
        torch.set_num_threads(threads)
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
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    if size() == 1:
        return torch.device("cuda")
    if int(os.environ["LOCAL_WORLD_SIZE"]) > seen:
        raise UserError(
            f"torchrun --nproc-per-node: torch sees {seen} GPU(s) here; start at most that many"
            " processes a machine, or --device cpu"
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def _mac_gpu() -> torch.device:
    if not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no Mac's GPU here; try --device cpu")
    if size() > 1:  # neither gloo nor nccl moves its tensors
        raise UserError("--device mps is for one process; take --device cpu under torchrun")
    say("--device mps: a Mac's GPU, on which this program was never run; float64 stays on the CPU")
    return torch.device("mps")


def start(device: torch.device) -> None:
    """Join the other processes of the job, where there are any: nccl on GPUs, gloo on CPUs."""
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
    """What the forward pass of training goes through: the network itself, or a wrapper of it."""
    if dist.is_initialized():
        ids = [device.index] if device.type == "cuda" else None
        # `share_buffers` sends the buffers when they are used: no need to in every step.
        how = {"forward_sync_buffers": False, "gradient_as_bucket_view": True}
        return nn.parallel.DistributedDataParallel(network, device_ids=ids, **how)
    if gpus > 1:
        say(f"DataParallel on {gpus} GPUs; torch recommends DistributedDataParallel: torchrun")
        return nn.DataParallel(network, device_ids=list(range(gpus)))
    return network


def process_share() -> slice:
    """Which of a list of images are this process's."""
    return slice(rank(), None, size())


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
    """What `decide()` returns on the first process, the same on all; so is its UserError raised."""
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
    """Give every process the first one's buffers: batch norm has averaged each process's images."""
    if dist.is_initialized():
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)


def wait() -> None:
    """Return once all processes are here."""
    if dist.is_initialized():
        dist.barrier()
