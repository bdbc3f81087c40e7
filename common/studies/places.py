"""Which places of f cost accuracy, with which recipe, and whether f's tail predicts how much.

Each study of part 3.4 trains and tests many networks; f is `activations.SquareLeaky`.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from common import job
from common.networks import activations
from common.networks.resnet36 import EXPONENTS, RELU_STEM, ResNet36, new_network
from common.reporting import problem3
from common.reporting.results import Findings
from common.reporting.statistics import difference_of, over_seeds
from common.studies.divergence import REPORT_RECIPE
from common.training import runs
from common.training.runs import NetworkSpec, Setup
from common.training.watch import NotFinite

PLACES = ("stem", "branch", "sum")
GAMMAS = (1, 0.3, 0.1)
CLAMPED = "clamped,clamped"  # f with an upper bound, another function, in the stem alone
STEM_ROWS = (  # the stem, the gammas that feed f, the activation in the branches
    ("f,f", 1, "f"), ("f,f", 0.1, "f"), ("f,f+bn", 0.1, "f"), ("f+bn,f+bn", 0.1, "f"),
    ("f,f+bn", 1, "f"), ("f+bn,f+bn", 1, "f"), ("f,f+dn", 1, "f"), ("f+dn,f+dn", 1, "f"),
    (RELU_STEM, 1, "f"), (RELU_STEM, 0.3, "f"), (RELU_STEM, 0.1, "f"), ("relu,f+bn", 1, "f"),
    ("relu,f", 0.1, "f"), ("f,relu", 0.1, "f"), (CLAMPED, 1, "f"), (RELU_STEM, 1, "ReLU"),
    ("relu,relu+dn", 1, "ReLU"),
)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """A network of a study, the plain values that describe it in its row, and its control."""

    spec: NetworkSpec
    described: Mapping
    control: str


def arm(
    setup: Setup, name: str, changes: Mapping, described: Mapping, control: str, recipe=None
) -> Arm:
    """ResNet-36 as the flags set it, with changes of its arguments and of the recipe."""
    flags = {k: getattr(setup.args, k) for k in ("residual", "width", "zero_init_residual")}
    build = partial(new_network, partial(ResNet36, setup.classes), {**flags, **changes})
    return Arm(NetworkSpec(name, build, recipe or {}), described, control)


def stems(setup: Setup) -> Findings:
    """Compare stems: which place of f costs accuracy, and which stem keeps f and still learns."""
    control, arms = "ReLU_stem_relu_relu_gamma_1", []
    for stem, gamma, branch in STEM_ROWS:
        name = f"{branch}_stem_{stem}_gamma_{gamma}".replace(",", "_").replace("+", "-")
        changes = {"activation": branch, "stem": stem, "gamma": gamma}
        if stem == CLAMPED:
            changes |= {"activation": "clamped", "branch_activation": branch, "stem": "f,f"}
        described = {"stem": stem, "gamma": gamma, "branch": branch}
        arms.append(arm(setup, name, changes, described, control))
    changes, slow = {"activation": "f", "stem": "f,f"}, {"warmup_epochs": setup.args.epochs / 2}
    described = {"stem": "f,f", "gamma": 1, "branch": "f"}
    described["change"] = "warm-up over half of the epochs"
    arms.append(arm(setup, "f_stem_f_f_slow", changes, described, control, slow))
    return study_findings(setup, "stems", arms)


def factorial(setup: Setup) -> Findings:
    """Compare f in each set of places, ReLU elsewhere, by the report's recipe and the flags'."""
    arms = []
    for recipe, recipe_changes in {"report": REPORT_RECIPE, "flags": {}}.items():
        for chosen in itertools.product((False, True), repeat=3):
            places = list(itertools.compress(PLACES, chosen))
            changes = {"activation": "f", "residual": "sum"}
            changes["stem"] = "f,f" if "stem" in places else RELU_STEM
            for place in ("branch", "sum"):
                changes[f"{place}_activation"] = "f" if place in places else "ReLU"
            name, described = f"{recipe}_{'_'.join(places) or 'none'}", {"places": places}
            described["recipe"] = recipe
            arms.append(arm(setup, name, changes, described, f"{recipe}_none", recipe_changes))
    return study_findings(setup, "factorial", arms)


def exponents(setup: Setup) -> Findings:
    """Test whether the tail of f_p(x) = x^p, 0.2 x predicts the accuracy that f_p costs."""
    arms = []
    for power, gamma in itertools.product(EXPONENTS, GAMMAS):
        kurtosis = activations.power_moments((1, power), (0.2, 1), gamma)["kurtosis"]
        described = {"power": power, "gamma": gamma, "kurtosis": kurtosis}
        changes = {"activation": f"f_{power:g}", "stem": "f,f", "gamma": gamma}
        arms.append(arm(setup, f"power_{power:g}_gamma_{gamma:g}", changes, described, "relu"))
    changes, described = {"activation": "ReLU", "stem": RELU_STEM}, {"power": None, "gamma": 1}
    arms.append(arm(setup, "relu", changes, {**described, "kurtosis": None}, ""))
    return study_findings(setup, "exponents", arms)


def study_findings(setup: Setup, study: str, arms: list[Arm]) -> Findings:
    """Train a study's networks: the result {study: rows, recipe, ...}, its table and figure."""
    rows = train_arms(setup, arms)
    # The factorial itself sets whether f stands after the sum.
    residual = "branch" if study == "factorial" else setup.args.residual
    tag = setup.tag_in(setup.recipe.precision)
    caption = ", ".join([tag, *problem3.remarks(setup.args.width, residual)])
    result = {study: rows, "chance": 100 / setup.classes, "width": setup.args.width}
    result["recipe"] = setup.recipe.as_dict()
    if study == "factorial":
        result["report_recipe"] = result["recipe"] | REPORT_RECIPE
    return problem3.study_findings(study, result, caption)


def train_arms(setup: Setup, arms: list[Arm]) -> list[dict]:
    """Train every arm once per seed; a value that is not finite ends that run, not the study.

    Returns:
        A row per arm: network, its name; the keys of `described`; seeds, the number of complete
        runs; val_top1, test_top1 (means in per cent, None without a run) and test_top1_std (None
        below two runs); test_not_finite, images without finite logits in all runs together;
        stopped, a message per run that was ended; difference, that of test top-1 to the control as
        `difference_of`, over the seeds that both have; None without one and for the control.
    """
    args, rows, complete = setup.args, [], {}
    runs.train_side_by_side(setup, [arm.spec for arm in arms])
    for arm in arms:
        name, trained, stopped = arm.spec.name, [], []
        for seed in range(args.seed, args.seed + args.seeds):
            try:
                trained.append(runs.train_and_test(setup, arm.spec, seed, args.gpus))
            except NotFinite as error:
                job.say(f"{name}: {error}")
                stopped.append(str(error))
        complete[name] = trained
        means = over_seeds(trained, len(setup.packed["test"])) if trained else {}
        row = {"network": name, **arm.described, "seeds": len(trained)}
        row |= {key: means.get(key) for key in ("val_top1", "test_top1", "test_top1_std")}
        row["test_not_finite"] = sum(run["test_not_finite"] for run in trained)
        rows.append({**row, "stopped": stopped})
    for arm, row in zip(arms, rows, strict=True):
        control = [] if arm.control == arm.spec.name else complete.get(arm.control, [])
        row["difference"] = difference_of(complete[arm.spec.name], control)
    return rows
