"""About how long trainings will take, from the time of a measured step."""

from collections.abc import Iterable
from functools import cache

import torch

from common.training.precision import Example
from common.training.runs import NetworkSpec, Setup, is_waiting, run_folder

EVALUATED = 0.35  # of the time of a trained image that an evaluated one takes
SECOND_THREAD = 0.4  # of a thread's work that each further one of a process adds


def training_seconds(setup: Setup, specs: Iterable[NetworkSpec], seeds: int) -> float:
    """About how long it takes to train and test networks that are like the one measured."""
    args, counts = setup.args, {split: len(one.labels) for split, one in setup.sources.items()}
    folders = [
        run_folder(setup, spec.name, args.seed + index, args.gpus)
        for spec in specs
        for index in range(seeds)
    ]
    waiting = sum(is_waiting(setup, folder) for folder in folders)
    if not waiting:
        return 0
    evaluated = args.epochs * counts["val"] + counts["test"]
    images = args.epochs * counts["train"] + EVALUATED * evaluated
    return images * waiting / images_per_second(setup, waiting)


def images_per_second(setup: Setup, trainings: int = 1) -> float:
    """Images a second that so many trainings get through together, by the measured step."""
    measured = setup.precision.images_per_second or _timed(setup.step, setup.precision.name)
    if setup.device.type != "cpu":
        return measured
    jobs = max(1, min(setup.args.jobs, trainings))
    threads = max(1, torch.get_num_threads() // jobs)
    return measured * jobs * (1 + SECOND_THREAD * (threads - 1))


@cache
def _timed(step: Example, precision: str) -> float:
    """The speed in a precision that was asked for, which nothing has timed yet."""
    return 1 / step.seconds(precision)[precision]
