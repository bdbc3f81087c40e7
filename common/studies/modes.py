"""The same training in several processes of this machine, as torchrun would start them."""

from argparse import Namespace
from dataclasses import replace

import torch

from common.errors import UserError
from common.training import parallel
from common.training.runs import NetworkSpec, Setup, train_seeds


def launch_ddp(setup: Setup, spec: NetworkSpec, processes: int, precision: str) -> dict:
    """Train a network's first run by DistributedDataParallel: a dict as `runs.train_and_test`'s.

    Raises:
        UserError: a process failed.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError  # slow to import

    args = Namespace(**{**vars(setup.args), "gpus": 0, "precision": precision})
    apart = replace(setup, args=args, recipe=replace(setup.recipe, precision=precision))
    threads = max(1, torch.get_num_threads() // processes)
    try:
        return parallel.launch(processes, _train, apart, spec, threads)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        failed = f"process {rank} of {processes} failed with exit code {failure.exitcode}"
        raise UserError(f"{failed}; its message is above") from None


def _train(setup: Setup, spec: NetworkSpec, threads: int) -> dict:
    """The run in one of the processes."""
    device = parallel.pick_device(setup.device.type, threads=threads)
    parallel.start(device)
    run = train_seeds(replace(setup, device=device, finished={}), spec, seeds=1)[0]
    parallel.stop()
    return run
