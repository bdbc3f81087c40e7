"""Several GPUs or processes: DataParallel, DistributedDataParallel, or trainings side by side.

Only the forward pass sees a wrapper: saving, counting and Grad-CAM use the bare network. Each step
and each evaluation is partitioned exactly: every process takes every `size`-th image.
"""

import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection

import torch
import torch.distributed as dist
from torch import Tensor, nn

from common import job
from common.errors import UserError
from common.job import rank, say, size
from common.training.watch import NotFinite

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


# ------------------------------------------------------------------------ new processes


def side_by_side(
    trainings: Mapping[str, Callable[[], object]], after: Mapping[str, str], jobs: int
) -> Iterator[tuple[str, object]]:
    """Call functions that can be pickled in new processes, `jobs` at a time, in their order.

    Two of one thread each get more done on two cores than one of two threads, whose threads wait
    for each other after every small operation. Their lines begin with their names. `after` names
    for some of them another that has to end first. Yields as each ends its name and what it
    returned, or the NotFinite that it raised. Another UserError, or the end of a process, stops the
    others.
    """
    waiting, working, threads = list(trainings), {}, max(1, torch.get_num_threads() // jobs)
    # A server that has loaded PyTorch once starts each process in no time.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "common.training.runs"])
    try:
        while waiting or working:
            unfinished = {*waiting, *(name for name, _ in working.values())}
            ready = [name for name in waiting if after.get(name) not in unfinished]
            for name in ready[: jobs - len(working)]:
                pipe, its_end = context.Pipe(duplex=False)
                arguments = (its_end, name, trainings[name], threads)
                process = context.Process(target=_train, args=arguments, daemon=True)
                process.start()
                its_end.close()
                working[pipe] = (name, process)
                waiting.remove(name)
            for pipe in multiprocessing.connection.wait(list(working)):
                name, process = working[pipe]
                try:
                    result = pipe.recv()
                except EOFError:
                    why = "what it said is above; if nothing, memory was short: start fewer"
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
    os.setpgrp()  # Ctrl-C on a terminal reaches the parent, which passes it on, and not us twice
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
    """Call a function that can be pickled in the processes of a job; its results by rank."""
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
