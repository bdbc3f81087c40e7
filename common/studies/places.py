"""Which of f's places costs accuracy, by which recipe, and whether the tail of f tells how much.

Three studies of part 3.4, each of many networks, trained and tested as those of the part.
"""

import itertools
from collections.abc import Callable, Mapping
from functools import partial

from torch import nn
from torchvision.models import resnet34

from common.networks import activations
from common.networks.normalized import Normalized, seeded
from common.networks.resnet36 import RELU_STEM, Activation, ResNet36
from common.networks.square_leaky import ClampedSquareLeaky, PowerLeaky, SquareLeaky
from common.reporting import problem3, studies
from common.reporting.results import Findings
from common.studies.accuracy import Arm, train_arms
from common.studies.divergence import REPORT_RECIPE
from common.training.runs import NetworkSpec, Setup

RELU_ROW = f"ReLU_stem_{RELU_STEM}_gamma_1".replace(",", "_")  # the control of the stems
PLACES = ("stem", "branch", "sum")
EXPONENTS, GAMMAS = (1, 1.25, 1.5, 1.75, 2), (1, 0.3, 0.1)
ACTIVATIONS = {"f": SquareLeaky, "ReLU": nn.ReLU, "clamped": ClampedSquareLeaky}
ACTIVATIONS |= {f"f_{power:g}": partial(PowerLeaky, power) for power in EXPONENTS}
CLAMPED = "clamped,clamped"  # f with an upper bound, another function, in the stem alone
STEM_ROWS = [  # the stem, the gammas that feed f, the activation in the branches
    *(("f,f", 1, "f"), ("f,f", 0.1, "f"), ("f,f+bn", 0.1, "f"), ("f+bn,f+bn", 0.1, "f")),
    *(("f,f+bn", 1, "f"), ("f+bn,f+bn", 1, "f"), ("f,f+dn", 1, "f"), ("f+dn,f+dn", 1, "f")),
    *((RELU_STEM, 1, "f"), (RELU_STEM, 0.3, "f"), (RELU_STEM, 0.1, "f"), ("relu,f+bn", 1, "f")),
    *(("relu,f", 0.1, "f"), ("f,relu", 0.1, "f"), (CLAMPED, 1, "f"), (RELU_STEM, 1, "ReLU")),
    ("relu,relu+dn", 1, "ReLU"),
]


def new_network(build: Callable, how: Mapping, seed: int) -> tuple[nn.Module, dict]:
    """Build a network for images in [0, 1] as it starts from a seed, and tell its identity.

    Activations among the arguments `how` are called by their names in ACTIVATIONS.
    """
    named = {key: ACTIVATIONS[name] for key, name in how.items() if key.endswith("activation")}
    return seeded(partial(build, **{**how, **named}), seed), {"init": "scratch", **how}


def resnet34_with(activation: Activation, classes: int, seed: int) -> Normalized:
    """torchvision's ResNet-34 with another activation for each of its ReLUs: after sums too."""
    network = seeded(partial(resnet34, num_classes=classes), seed)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.ReLU):
            network.set_submodule(name, activation())
    return network


def arm(
    setup: Setup,
    name: str,
    about: Mapping,
    how: Mapping,
    recipe_changes: Mapping | None = None,
    against: str = "",
) -> Arm:
    """A network of a study: ResNet-36 with arguments beside those of the flags."""
    args = setup.args
    flags = {"residual": args.residual, "width": args.width}
    flags["zero_init_residual"] = args.zero_init_residual
    build = partial(new_network, partial(ResNet36, setup.classes), {**flags, **how})
    return Arm(NetworkSpec(name, build, dict(recipe_changes or {})), about, against)


def stems(setup: Setup) -> Findings:
    """Which of f's places costs accuracy, and a stem that keeps f and learns."""
    arms = []
    for stem, gamma, branch in STEM_ROWS:
        name = f"{branch}_stem_{stem}_gamma_{gamma}".replace(",", "_").replace("+", "-")
        about = {"stem": stem, "gamma": gamma, "branch": branch}
        how = {"activation": branch, "stem": stem, "gamma": gamma}
        if stem == CLAMPED:
            how |= {"activation": "clamped", "branch_activation": branch, "stem": "f,f"}
        arms.append(arm(setup, name, about, how, against=RELU_ROW))
    about = {"stem": "f,f", "gamma": 1, "branch": "f", "change": "warm-up over half of the epochs"}
    how, slow = {"activation": "f", "stem": "f,f"}, {"warmup_epochs": setup.args.epochs / 2}
    arms.append(arm(setup, "f_stem_f_f_slow", about, how, slow, against=RELU_ROW))
    return study_findings(setup, "stems", arms)


def factorial(setup: Setup) -> Findings:
    """Each set of f's places, ReLU in the others, by the report's recipe and by the flags'."""
    recipes = {"report": REPORT_RECIPE, "flags": {}}
    arms = []
    for recipe, changes in recipes.items():
        for places in itertools.product((False, True), repeat=3):
            told = [place for place, has_f in zip(PLACES, places, strict=True) if has_f]
            name = f"{recipe}_{'_'.join(told) or 'none'}"
            how = {"residual": "sum", "stem": "f,f" if "stem" in told else RELU_STEM}
            for place in ("branch", "sum"):
                how[f"{place}_activation"] = "f" if place in told else "ReLU"
            how["activation"] = "f"
            about = {"places": told, "recipe": recipe}
            arms.append(arm(setup, name, about, how, changes, against=f"{recipe}_none"))
    return study_findings(setup, "factorial", arms)


def exponents(setup: Setup) -> Findings:
    """Whether the tail of f_p(x) = x^p, 0.2 x predicts what it costs."""
    arms = []
    for power, gamma in itertools.product(EXPONENTS, GAMMAS):
        tail = activations.power_moments((1, power), (0.2, 1), gamma)["kurtosis"]
        about = {"power": power, "gamma": gamma, "kurtosis": tail}
        how = {"activation": f"f_{power:g}", "stem": "f,f", "gamma": gamma}
        name = f"power_{power:g}_gamma_{gamma:g}"
        arms.append(arm(setup, name, about, how, against="relu"))
    about = {"power": None, "gamma": 1, "kurtosis": None}
    arms.append(arm(setup, "relu", about, {"activation": "ReLU", "stem": RELU_STEM}))
    return study_findings(setup, "exponents", arms)


def study_findings(setup: Setup, study: str, arms: list[Arm]) -> Findings:
    """Train a study's networks: the result {study: rows, recipe, ...}, its table and figure."""
    rows = train_arms(setup, arms)
    # f after the sum is a place of the factorial's own.
    residual = "branch" if study == "factorial" else setup.args.residual
    caption = ", ".join([setup.tag, *problem3.remarks(residual, setup.args.width)])
    result = {study: rows, "chance": 100 / setup.classes, "width": setup.args.width}
    result["recipe"] = setup.recipe.as_dict()
    if study == "factorial":
        result["report_recipe"] = result["recipe"] | REPORT_RECIPE
    table, figure = studies.study_report(study, result, caption)
    figures = {f"3.4_{study}.png": figure} if figure else {}
    return Findings(result, {f"3.4_{study}.txt": table}, figures=figures)
