"""Networks that differ in one thing, trained with equal seeds, compared on the same images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from common import job
from common.reporting.statistics import paired_difference
from common.training import runs
from common.training.runs import NetworkSpec, Setup
from common.training.watch import NotFinite


@dataclass(frozen=True)
class Arm:
    """A network of a study, what is said of it beside its name, and the one it is compared with.

    about: plain values. against: the name of another arm, the control.
    """

    spec: NetworkSpec
    about: Mapping = field(default_factory=dict)
    against: str = ""


def train_arms(setup: Setup, arms: Iterable[Arm]) -> list[dict]:
    """Train every arm once a seed; a value that is not finite ends that run, not the study.

    Returns:
        A row an arm: network, its name; the keys of its `about`; seeds, the number of runs that
        ended well; val_top1, test_top1 (means in per cent, None without a run) and test_top1_std
        (None below two); test_not_finite, images of all runs together; stopped, a message a run
        that a value ended; difference, that of test top-1 to the arm `against` as
        `paired_difference`, of the seeds that both have; None without one, and of that arm itself.
    """
    arms, rows, right, controls = list(arms), [], {}, {}
    runs.train_side_by_side(setup, [arm.spec for arm in arms])
    for arm in arms:
        trained, stopped = _train(setup, arm.spec)
        name = arm.spec.name
        controls[name] = arm.against
        right[name] = {run["seed"]: hits_of(run) for run in trained}
        means = runs.over_seeds(trained, len(setup.packed["test"])) if trained else {}
        row = {key: means.get(key) for key in ("val_top1", "test_top1", "test_top1_std")}
        row["test_not_finite"] = sum(run["test_not_finite"] for run in trained)
        told = {"network": name, **arm.about, "seeds": len(trained), **row, "stopped": stopped}
        rows.append(told)
    for row in rows:
        name, control = row["network"], controls[row["network"]]
        others = right.get(control, {}) if control != name else {}
        row["difference"] = _difference(right[name], others)
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


def _difference(these: Mapping[int, np.ndarray], others: Mapping[int, np.ndarray]) -> dict | None:
    seeds = [seed for seed in these if seed in others]
    if not seeds:
        return None
    return paired_difference(*(np.array([arm[seed] for seed in seeds]) for arm in (these, others)))


def differences(trained: Mapping[str, list[dict]], pairs: Iterable[tuple[str, str]]) -> list[dict]:
    """Paired differences of test top-1 in points: {"a", "b", "mean", "low", "high"} a pair."""
    right = {name: np.array([hits_of(run) for run in found]) for name, found in trained.items()}
    return [{"a": a, "b": b, **paired_difference(right[a], right[b])} for a, b in pairs]
