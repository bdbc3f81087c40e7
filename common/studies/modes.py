"""The same training in several processes of this machine, as torchrun would start them."""

from argparse import Namespace
from dataclasses import replace

from common.training import jobs, parallel
from common.training.runs import NetworkSpec, Setup, train_seeds


def launch_ddp(setup: Setup, spec: NetworkSpec, processes: int, precision: str) -> dict:
    """Train a network's first run by DistributedDataParallel: a dict as `runs.train_and_test`'s."""
    args = Namespace(**{**vars(setup.args), "gpus": 0, "precision": precision})
    apart = replace(setup, args=args, recipe=replace(setup.recipe, precision=precision))
    return jobs.launch(processes, _train, apart, spec)[0]


def _train(setup: Setup, spec: NetworkSpec) -> dict:
    """The run in one of the processes."""
    device = parallel.pick_device(setup.device.type)
    parallel.start(device)
    run = train_seeds(replace(setup, device=device, finished={}), spec, seeds=1)[0]
    parallel.stop()
    return run
