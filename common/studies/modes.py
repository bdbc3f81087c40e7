"""The same training in several processes of this machine, as torchrun would start them."""

from argparse import Namespace
from dataclasses import replace
from functools import partial

import torch

from common import job
from common.training import jobs, parallel
from common.training.runs import NetworkSpec, Setup, train_and_test

MODE_KEYS = ("precision", "images_per_second", "training_seconds", "val_top1", "test_top1")


def in_each_mode(setup: Setup, spec: NetworkSpec, many: int) -> list[dict]:
    """Train a network's first run in one process and, where they are there, by two GPUs or more.

    On a CPU `many` processes stand for the GPUs.

    Returns:
        A dict a mode: mode; processes and MODE_KEYS of its run, or not_run (why).
    """
    enough = torch.cuda.device_count() >= many
    train = partial(train_and_test, setup, spec, setup.args.seed)
    trained, why_not = {}, "not run: no second GPU"
    if job.size() > 1:
        why_not = "not run: this is a job of torchrun"
        trained["DistributedDataParallel"] = (job.size(), train(gpus=0))
    else:
        single = train(gpus=0)
        trained["1 process"] = (1, single)
        if enough:
            trained["DataParallel"] = (1, train(gpus=many))
        if enough or setup.device.type == "cpu":
            run = launch_ddp(setup, spec, many, single["precision"])
            trained["DistributedDataParallel"] = (many, run)
    rows = []
    for mode in ("1 process", "DataParallel", "DistributedDataParallel"):
        row = {"not_run": why_not}
        if mode in trained:
            processes, run = trained[mode]
            row = {"processes": processes, **{key: run[key] for key in MODE_KEYS}}
        rows.append({"mode": mode, **row})
    return rows


def launch_ddp(setup: Setup, spec: NetworkSpec, processes: int, precision: str) -> dict:
    """Train a network's first run by DistributedDataParallel: a dict as `runs.train_and_test`'s."""
    args = Namespace(**{**vars(setup.args), "gpus": 0, "precision": precision})
    apart = replace(setup, args=args, recipe=replace(setup.recipe, precision=precision))
    return jobs.launch(processes, _train, apart, spec)[0]


def _train(setup: Setup, spec: NetworkSpec) -> dict:
    """The run in one of the processes."""
    device = parallel.pick_device(setup.device.type)
    parallel.start(device)
    apart = replace(setup, device=device, finished={})
    run = train_and_test(apart, spec, setup.args.seed, gpus=0)
    parallel.stop()
    return run
