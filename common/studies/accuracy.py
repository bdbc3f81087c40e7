"""Networks that differ in one thing, trained with equal seeds, compared on the same images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from common import job
from common.reporting.statistics import paired_difference
from common.reporting.trainings import over_seeds
from common.training import runs
from common.training.runs import NetworkSpec, Setup
from common.training.watch import NotFinite


@dataclass(frozen=True)
class Arm:
    """A network of a study, what is said of it beside its name, and the one it is compared with.

    described: plain values. control: the name of another arm.
    """

    spec: NetworkSpec
    described: Mapping = field(default_factory=dict)
    control: str = ""


def train_arms(setup: Setup, arms: list[Arm]) -> list[dict]:
    """Train every arm once a seed; a value that is not finite ends that run, not the study.

    Returns:
        A row an arm: network, its name; the keys of `described`; seeds, the number of runs that
        ended well; val_top1, test_top1 (means in per cent, None without a run) and test_top1_std
        (None below two); test_not_finite, images of all runs together; stopped, a message a run
        that a value ended; difference, that of test top-1 to the control as `paired_difference`, of
        the seeds that both have; None without one, and of the control itself.
    """
    rows, correct = [], {}
    runs.train_side_by_side(setup, [arm.spec for arm in arms])
    for arm in arms:
        trained, stopped = _train(setup, arm.spec)
        correct[arm.spec.name] = {run["seed"]: hits_of(run) for run in trained}
        means = over_seeds(trained, len(setup.packed["test"])) if trained else {}
        row = {"network": arm.spec.name, **arm.described, "seeds": len(trained)}
        row |= {key: means.get(key) for key in ("val_top1", "test_top1", "test_top1_std")}
        row["test_not_finite"] = sum(run["test_not_finite"] for run in trained)
        rows.append({**row, "stopped": stopped})
    for arm, row in zip(arms, rows, strict=True):
        a, b = correct[arm.spec.name], correct.get(arm.control, {})
        both = [seed for seed in a if seed in b and arm.control != arm.spec.name]
        pair = [np.array([hits[seed] for seed in both]) for hits in (a, b)]
        row["difference"] = paired_difference(*pair) if both else None
    return rows


def _train(setup: Setup, spec: NetworkSpec) -> tuple[list[dict], list[str]]:
    trained, stopped = [], []
    for index in range(setup.args.seeds):
        try:
            trained += [runs.train_and_test(setup, spec, setup.args.seed + index, setup.args.gpus)]
        except NotFinite as error:
            job.say(f"{spec.name}: {error}")
            stopped.append(str(error))
    return trained, stopped


def hits_of(run: Mapping) -> np.ndarray:
    """Whether a run names each image of test, in order: zeros and ones."""
    return np.array([int(hit) for hit in run["hits"]])


def differences(trained: Mapping[str, list[dict]], pairs: Iterable[tuple[str, str]]) -> list[dict]:
    """Paired differences of test top-1 in points: {"a", "b", "mean", "low", "high"} a pair."""
    hits = {name: np.array([hits_of(run) for run in found]) for name, found in trained.items()}
    return [{"a": a, "b": b, **paired_difference(hits[a], hits[b])} for a, b in pairs]
