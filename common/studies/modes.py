"""The same training in several processes of this machine, as torchrun would start them."""

from argparse import Namespace
from dataclasses import replace
from functools import partial

import torch

from common import job
from common.training import parallel
from common.training.runs import NetworkSpec, Setup, train_and_test

MODES = ("1 process", "DataParallel", "DistributedDataParallel")
MODE_KEYS = ("precision", "images_per_second", "training_seconds", "val_top1", "test_top1")


def in_each_mode(setup: Setup, spec: NetworkSpec, many: int) -> list[dict]:
    """Train a network's first run in one process and, where they are there, by two GPUs or more.

    On a CPU `many` processes stand for the GPUs.

    Returns:
        A dict a mode: mode; processes and MODE_KEYS of its run, or not_run (why).
    """
    one, copied, spread = MODES
    enough, trained = torch.cuda.device_count() >= many, {}
    train = partial(train_and_test, setup, spec, setup.args.seed)
    if job.size() > 1:
        trained[spread] = (job.size(), train(gpus=0))
    else:
        single = train(gpus=0)
        trained[one] = (1, single)
        if enough:
            trained[copied] = (1, train(gpus=many))
        if enough or setup.device.type == "cpu":
            precision = single["precision"]
            args = Namespace(**{**vars(setup.args), "gpus": 0, "precision": precision})
            same = replace(setup, args=args, recipe=replace(setup.recipe, precision=precision))
            trained[spread] = (many, parallel.launch(many, _train, same, spec)[0])
    why_not = "this is a job of torchrun" if job.size() > 1 else "no second GPU"
    rows = {mode: {"mode": mode, "not_run": f"not run: {why_not}"} for mode in MODES}
    for mode, (processes, run) in trained.items():
        rows[mode] = {"mode": mode, "processes": processes, **{key: run[key] for key in MODE_KEYS}}
    return list(rows.values())


def _train(setup: Setup, spec: NetworkSpec) -> dict:
    """The run in one of the processes."""
    device = parallel.pick_device(setup.device.type)
    parallel.start(device)
    run = train_and_test(replace(setup, device=device, finished={}), spec, setup.args.seed, gpus=0)
    parallel.stop()
    return run
