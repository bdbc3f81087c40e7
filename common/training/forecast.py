"""About how long trainings will take, from the time of a measured step."""

from collections.abc import Iterable

import torch

from common.training.runs import NetworkSpec, Setup, is_complete, run_folder

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
    waiting = sum(folder not in setup.finished and not is_complete(folder) for folder in folders)
    evaluated = args.epochs * counts["val"] + counts["test"]
    images = args.epochs * counts["train"] + EVALUATED * evaluated
    return images * waiting / images_per_second(setup, waiting)


def images_per_second(setup: Setup, trainings: int = 1) -> float:
    """Images a second that so many trainings get through together, by the measured step."""
    if setup.device.type != "cpu":
        return setup.precision.images_per_second
    jobs = max(1, min(setup.args.jobs, trainings))
    threads = max(1, torch.get_num_threads() // jobs)
    return setup.precision.images_per_second * jobs * (1 + SECOND_THREAD * (threads - 1))
