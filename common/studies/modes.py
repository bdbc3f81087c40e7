"""The same training in one process, with DataParallel and with DistributedDataParallel."""

from argparse import Namespace
from dataclasses import replace
from statistics import fmean

import torch

from common import job
from common.reporting.statistics import over_seeds
from common.training import parallel
from common.training.runs import NetworkSpec, Setup, differences, train_seeds

MODES = ("1 process", "DataParallel", "DistributedDataParallel")


def in_each_mode(setup: Setup, spec: NetworkSpec, many: int) -> tuple[list[dict], list[dict]]:
    """Train a network once per seed in each of MODES that this machine can run.

    Two of the modes need `many` GPUs; on a CPU DistributedDataParallel has `many` processes.

    Returns:
        A dict per mode: mode; processes, precision, seeds (their number), images_per_second (their
        mean), threads (of all processes) and the keys of `over_seeds`; or not_run (the reason). And
        the differences in test top-1 of the other modes to one process, as `runs.differences`.
    """
    one, copied, spread = MODES
    enough, trained = setup.device.type == "cuda" and torch.cuda.device_count() >= many, {}
    if job.size() > 1:
        trained[spread] = (job.size(), train_seeds(setup, spec))
    else:
        single = train_seeds(_with_flags(setup, gpus=0), spec)
        trained[one] = (1, single)
        if enough:
            trained[copied] = (1, train_seeds(_with_flags(setup, gpus=many), spec))
        if enough or setup.device.type == "cpu":
            precision = single[0]["precision"]
            same = replace(setup, recipe=replace(setup.recipe, precision=precision))
            same = _with_flags(same, gpus=0, precision=precision)
            trained[spread] = (many, parallel.launch(many, _train, same, spec)[0])
    why_not = "this is a job of torchrun" if job.size() > 1 else "no second GPU is used"
    rows = {mode: {"mode": mode, "not_run": f"not run: {why_not}"} for mode in MODES}
    for mode, (processes, runs) in trained.items():
        row = {"mode": mode, "processes": processes, "precision": runs[0]["precision"]}
        row["images_per_second"] = fmean(run["images_per_second"] for run in runs)
        row["threads"] = processes * runs[0]["history"][-1]["threads"]
        rows[mode] = {**row, "seeds": len(runs), **over_seeds(runs, len(setup.packed["test"]))}
    pairs = [(mode, one) for mode in (copied, spread) if {mode, one} <= trained.keys()]
    runs_by_mode = {mode: runs for mode, (_, runs) in trained.items()}
    return list(rows.values()), differences(runs_by_mode, pairs)


def _with_flags(setup: Setup, **flags) -> Setup:
    return replace(setup, args=Namespace(**{**vars(setup.args), **flags}))


def _train(setup: Setup, spec: NetworkSpec) -> list[dict]:
    device = parallel.pick_device(setup.device.type)
    parallel.start(device)
    runs = train_seeds(replace(setup, device=device), spec)
    parallel.stop()
    return runs
