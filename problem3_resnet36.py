"""Problem 3: does a 36-layer ResNet learn with the activation x^2 / 0.2x; why did it diverge?

Method: images are drawn from class folders, verified and listed in a manifest. The report's network
with the activation f in stem and branches is trained beside ResNet-34 and its own version with
ReLU. The version with f after the sums (assumed: the report does not say) is watched until it
diverges, and then changed in one thing at a time.
f is in common/networks/activations.py, ResNet-36 in resnet36.py beside it.

    python problem3_resnet36.py --data DIR             all parts, DIR holds class folders
    python problem3_resnet36.py --data synthetic       all parts, embedded data
    python problem3_resnet36.py 3.4 --data DIR --diagnose     the doctor alone, no training
    python problem3_resnet36.py 3.4 --data DIR --reproduce    the report's own first steps
    python problem3_resnet36.py 3.4 --data DIR --exponents    what x^p costs, 16 networks a seed

Hardware: any CPU or GPU; at 64 px and half the width a training takes 12 to 17 minutes on one CPU
core with bf16 instructions, --reproduce about an hour and 11 GB.
Finding (README, outputs/published/problem3): with f after the sums 11 of 15 first passes of 128
pictures at the report's size (five networks, three kinds of pictures) end dead, with a loss near
ln 650; one network, followed with 64 pictures a batch, had NaN in the next step. With f in stem and
branches and the stem's output divided by its power, no difference to ReLU shows: 72 and 71 % of ten
ImageNet classes at 64 px and half the width, +0.9 points (-0.9 to +2.5).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common.start  # noqa: F401 it handles Ctrl-C while the others load

# isort: split
import argparse
import hashlib
import math
import re
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn
from torchvision.models import resnet34

from common import cli, job
from common.data import manifest, prototype, sets
from common.errors import UserError, guard
from common.networks import activations, doctor, summary, timing
from common.networks.activations import ClampedSquareLeaky, SquareLeaky, square_leaky, where_form
from common.networks.normalized import Normalized, seeded
from common.networks.resnet36 import (
    RELU_STEM,
    RESIDUALS,
    STEMS,
    ResNet36,
    new_network,
    resnet34_with,
)
from common.reporting import plotting, problem3, results
from common.reporting.parts import run_parts
from common.reporting.results import Findings
from common.reporting.statistics import with_means
from common.reporting.tables import training_report
from common.studies import divergence, places, reproduction
from common.studies.divergence import REPORT_RECIPE, Followed
from common.training import loop, parallel, runs
from common.training.recipe import Recipe, add_flags
from common.training.runs import NetworkSpec, Setup, images_per_second, training_seconds

REPORT_SIZE = (3, 224, 224)  # of the report's tables: channels, height, width
DEVIATIONS, SAMPLES = (0.5, 1.0, 2.0), 4_000_000  # of the normal input of part 3.3
TIMED_IMAGES, REPEATS = 4, 9  # of the activation's timing
BLOCK = re.compile(r"maxpool|layer\d\.\d+|fc")  # the stem's end, the blocks and the last layer
LAST_STEPS = 10  # over which the last loss is averaged
# The report's network in the report's training; the same training with f off the sums.
REPORT, BRANCH_BY_REPORT = "resnet36_sum", "resnet36_report_recipe"
BEST_STEM = "f,f+dn"  # the best on val of the stems that keep f


# --------------------------------------------------------------------------- 3.1 the data set
@dataclass(frozen=True)
class Prepared:
    """What the parts share; the data set, `drawn`, is None if no part needs images."""

    setup: Setup
    drawn: manifest.Manifest | None


def part_3_1(prepared: Prepared) -> Findings:
    """The prototype data set: catalogue, manifest, samples."""
    setup, drawn, listing = prepared.setup, prepared.drawn, prepared.drawn.csv_bytes()
    result = {
        **drawn.catalogue(),
        "quarantined": drawn.quarantined,
        "left_out": drawn.left_out,
        "manifest_sha256": hashlib.sha256(listing).hexdigest(),
    }
    names, pictures = sets.sample_pictures(setup.sources, setup.args.seed)
    title = f"{setup.data}: {len(names)} random classes"
    headers = [name.split(",")[0] for name in names]
    return Findings(
        result,
        tables={"3.1_catalogue.txt": problem3.catalogue_table(result, setup.data)},
        texts={"3.1_manifest.csv": listing},
        figures={
            "3.1_samples.png": partial(
                plotting.image_grid, title=title, headers=headers, rows=pictures
            )
        },
    )


# ---------------------------------------------------------------------------- 3.2 the network
def part_3_2(prepared: Prepared) -> Findings:
    """ResNet-36: tables and counts."""
    args = prepared.setup.args
    classes = args.classes or manifest.CLASSES
    about = {"residual": args.residual, "width": args.width}
    network = summary.without_weights(partial(ResNet36, classes, **about))
    layers = len(summary.weighted_layers(network, skip="shortcut"))
    parameters = summary.count_parameters(network)
    job.say(f"{layers} weighted layers on the main path, {parameters:,} parameters")
    result = {"parameters": parameters, "weighted_layers": layers, "classes": classes, **about}
    remarks = problem3.remarks(args.width)
    caption = ", ".join([f"ResNet-36, {classes} classes, --residual {args.residual}", *remarks])
    tables = [f"{name}\n{table}" for name, table in summary_tables(network).items()]
    return Findings(result, tables={"3.2_summary.txt": "\n".join([f"{caption}.", *tables])})


def summary_tables(network: ResNet36) -> dict[str, summary.Table]:
    """torchsummary's tables at 224 px of the stem, of each stage on its own, and of the whole.

    The activation is not listed, as in the report's Figures 22 to 24.
    """
    stem = (network.conv1, network.bn1, network.conv2, network.bn2, network.maxpool)
    parts = {"stem": nn.Sequential(*stem)}
    parts |= {f"layer{stage}": network.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)}
    table, tables, size = partial(summary.summary_table, hide=("SquareLeaky",)), {}, REPORT_SIZE
    for name, part in parts.items():
        tables[name] = table(part, size)
        _, (_, *size), _ = tables[name].rows[-1]  # a part's output is the next one's input
    return {**tables, "whole network": table(network, REPORT_SIZE)}


# ------------------------------------------------------------------------- 3.3 the activation
FORMS = {"f": square_leaky, "where": where_form, "ReLU": torch.relu}
# Each function with its form for x > 0 and for x < 0: a x^p as (a, p).
POWERS = {"f": (square_leaky, (1, 2), (0.2, 1)), "ReLU": (torch.relu, (1, 1), (0, 1))}


def part_3_3(prepared: Prepared) -> Findings:
    """The activation: its curve, and what it does to a normal input."""
    device, seed = prepared.setup.device, prepared.setup.args.seed
    x = torch.arange(-300, 301, dtype=torch.float64) / 100  # with 0 itself
    named = {"f(x) = x^2, 0.2x": square_leaky, "ReLU": torch.relu}
    curves = {name: (f(x), activations.derivative(f, x)) for name, f in named.items()}
    moments = activations.normal_moments(POWERS, DEVIATIONS, SAMPLES, seed)
    shapes = timing.output_shapes(summary.without_weights(ResNet36), "SquareLeaky", REPORT_SIZE)
    costs = timing.costs_by_shape(FORMS, shapes, TIMED_IMAGES, REPEATS, device)
    ratio = partial(timing.cost_ratio, costs)
    result = {
        "time_vs_where": ratio("seconds", "f", "where"),
        "memory_vs_where": ratio("bytes", "f", "where"),
        "time_vs_relu": ratio("seconds", "f", "ReLU"),
        "moments": moments,
        "costs": costs,
    }
    return Findings(
        result,
        tables={
            "3.3_moments.txt": problem3.moments_table(result, SAMPLES),
            "3.3_cost.txt": problem3.cost_table(result, TIMED_IMAGES, REPEATS, device.type),
        },
        figures={"3.3_activation.png": partial(problem3.draw_functions, x=x, curves=curves)},
    )


# --------------------------------------------------- 3.4 the networks, and what they start with
def compared_networks(setup: Setup) -> dict[str, NetworkSpec]:
    """The compared networks by name: ResNet-34, and ResNet-36 with f in all, some or no places.

    resnet36 has f in all places that the flags name, resnet36_relu_stem in all but the stem, and
    resnet36_relu in none. With equal seeds all of them see the same images in the same order,
    augmented alike, since order and augmentation depend on the seed alone.
    """
    args, gammas = setup.args, {"zero_init_residual": setup.args.zero_init_residual}
    ours = {"residual": args.residual, "width": args.width, **gammas}
    relu_stem, build = {**ours, "stem": RELU_STEM}, partial(ResNet36, setup.classes)
    compared = {
        "resnet34": (partial(resnet34, num_classes=setup.classes), gammas),
        "resnet36": (build, {**ours, "activation": "f", "stem": args.stem}),
        "resnet36_relu_stem": (build, {**relu_stem, "activation": "f"}),
        "resnet36_relu": (build, {**relu_stem, "activation": "ReLU"}),
    }
    return {name: NetworkSpec(name, partial(new_network, *how)) for name, how in compared.items()}


def report_network(setup: Setup, **changes) -> Normalized:
    """The report's ResNet-36, with f after the sums; `changes` replace constructor arguments."""
    arguments = {"residual": "sum", "width": setup.args.width, **changes}
    return seeded(partial(ResNet36, setup.classes, **arguments), setup.args.seed)


def forecast_all(setup: Setup) -> dict[str, dict]:
    """Apply `doctor.forecast` to all networks; warn if one to be trained exceeds fp16's range."""
    images, seed = divergence.first_images(setup), setup.args.seed
    trained = {name: spec.build(seed)[0] for name, spec in compared_networks(setup).items()}
    others = {REPORT: report_network(setup)}
    others["resnet34_f"] = resnet34_with(SquareLeaky, setup.classes, seed)
    forecasts = {
        name: doctor.forecast(network.to(setup.device), images, BLOCK)
        for name, network in {**trained, **others}.items()
    }
    for name in trained:
        if module := forecasts[name]["beyond_fp16"]:
            beyond = f"warning: overflow forecast: {name} exceeds fp16's range in {module}"
            job.say(f"{beyond}; try --residual branch, or --diagnose", file=sys.stderr)
    return forecasts


# ------------------------------------------------------- 3.4 the divergence, one change at a time
BRANCH, TWO_CHANGES = "f off the sums", "(f inside the branch, rate 0.01)"
RESNET34_F = "(ResNet-34 with f for its ReLUs)"


def changes_of_report(half_epochs: float) -> dict[str, tuple[dict, dict]]:
    """The changes to the report's training, by name: arguments of `ResNet36`, fields of the recipe.

    `half_epochs` is half of the followed steps, in epochs.
    """
    return {
        "none": ({}, {}),
        BRANCH: ({"residual": "branch"}, {}),
        "f clamped at 6, another function": ({"activation": ClampedSquareLeaky}, {}),
        "last BN's gamma starts at 0": ({"zero_init_residual": True}, {}),
        "gradients clipped to norm 1": ({}, {"clip_norm": 1.0}),
        "learning rate 10 times smaller": ({}, {"learning_rate": 0.01}),
        "warm-up over half of the steps": ({}, {"warmup_epochs": half_epochs}),
        "bf16 for fp32": ({}, {"precision": "bf16"}),
        "AdamW, 0.001, for SGD": ({}, {"optimizer": "adamw", "learning_rate": 1e-3}),
        "ReLU for f, the control": ({"activation": nn.ReLU}, {}),
        TWO_CHANGES: ({"residual": "branch"}, {"learning_rate": 0.01}),
    }


def part_3_4(prepared: Prepared) -> Findings:
    """Training beside ResNet-34, and why the report's network diverged."""
    setup, study = prepared.setup, prepared.setup.args.study
    run_study, _ = STUDIES.get(study, (None, ""))
    if run_study:
        return run_study(setup)
    args, forecasts, specs = setup.args, forecast_all(setup), compared_networks(setup)
    tag = setup.tag_in(setup.recipe.precision)
    job.say(", ".join([tag, *problem3.remarks(args.width, args.residual)]))
    trained, recipe = {}, setup.recipe
    if not study:
        runs.train_side_by_side(setup, specs.values())
        trained = {name: runs.train_seeds(setup, spec) for name, spec in specs.items()}
        recipe = replace(recipe, precision=trained["resnet36"][0]["precision"])
    changed = follow_changes(setup)
    rows = [{"change": name, **followed.result(LAST_STEPS)} for name, followed in changed.items()]
    not_single = (TWO_CHANGES, RESNET34_F)
    watched = {
        REPORT: changed["none"],
        BRANCH_BY_REPORT: changed[BRANCH],
        "resnet36": follow_as_trained(setup, recipe),
    }
    not_found = dict.fromkeys(divergence.PLACE)
    result = {
        "networks": with_means(trained, len(setup.packed["test"])),
        "differences": runs.differences(
            trained, [(name, "resnet36_relu") for name in trained if name != "resnet36_relu"]
        ),
        "forecast": forecasts,
        "divergence": {"network": REPORT, **(watched[REPORT].divergence or not_found)},
        "beyond_range": {name: followed.beyond for name, followed in watched.items()},
        "dead": {name: followed.dead for name, followed in watched.items()},
        "single_changes": [row for row in rows if row["change"] not in not_single],
        "not_single_changes": [row for row in rows if row["change"] in not_single],
        "steps": args.steps,
        "chance_loss": math.log(setup.classes),
        "residual": args.residual,
        "stem": args.stem,
        "width": args.width,
        "init": "scratch" + (", last gammas at 0" if args.zero_init_residual else ""),
        "recipe": recipe.as_dict(),
    }
    return findings_3_4(setup, result, trained, watched)


def follow_changes(setup: Setup) -> dict[str, Followed]:
    """Follow the report's training with each change, and with ResNet-34 that has f for ReLU."""
    half_epochs = setup.args.steps / 2 / loop.steps_per_epoch(setup.packed["train"], setup.recipe)
    by_report, changed = replace(setup.recipe, **REPORT_RECIPE), {}
    for name, (arguments, in_recipe) in changes_of_report(half_epochs).items():
        build, watch = partial(report_network, setup, **arguments), name in ("none", BRANCH)
        recipe = replace(by_report, **in_recipe)
        changed[name] = divergence.follow(setup, name, build, recipe, watch)
    build = partial(resnet34_with, SquareLeaky, setup.classes, setup.args.seed)
    changed[RESNET34_F] = divergence.follow(setup, RESNET34_F, build, by_report)
    return changed


def follow_as_trained(setup: Setup, recipe: Recipe) -> Followed:
    """Follow the network that the flags choose, with the recipe that has trained it."""
    args, spec = setup.args, compared_networks(setup)["resnet36"]
    flags = {key: getattr(args, key) for key in ("stem", "residual", "zero_init_residual")}
    build, name = (lambda: spec.build(args.seed)[0]), "resnet36, as trained"
    return divergence.follow(setup, name, build, recipe, watch=True, **flags)


def findings_3_4(
    setup: Setup, result: dict, trained: dict[str, list[dict]], watched: dict[str, Followed]
) -> Findings:
    """Put together 3.4's findings: its result, the tables, the doctor's rows and the figures."""
    args, blocks = setup.args, [*result["forecast"][REPORT]["blocks"]]
    remarks = problem3.remarks(args.width, args.residual)
    size = [setup.data, f"{args.image_size} px", setup.device.type]
    tag, tables, figures = ", ".join([*size, *problem3.remarks(args.width)]), {}, {}
    if trained:
        caption = ", ".join([*remarks, f"init {result['init']}, stem of resnet36: {args.stem}"])
        compared = result["differences"]
        tables, figures = training_report(setup, "3.4", trained, caption, differences=compared)
    recipe = problem3.recipe_words(REPORT_RECIPE)
    forecast = ", ".join([*size, *remarks, f"batch {args.batch_size}, seed {args.seed}"])
    tables["3.4_forecast.txt"] = problem3.forecast_table(result, forecast)
    changes = problem3.changes_table(result, LAST_STEPS, recipe, tag)
    tables["3.4_single_changes.txt"] = changes
    tables["3.4_doctor.txt"] = problem3.doctor_table(result, doctor.RANGES, recipe, tag)
    texts = {f"3.4_doctor_{name}.csv": followed.csv_text() for name, followed in watched.items()}
    curves = {
        name: {step: followed.peaks(step, blocks) for step in (1, followed.last_step)}
        for name, followed in watched.items()
    }
    drawn = {"curves": curves, "blocks": blocks, "ranges": doctor.RANGES, "tag": tag}
    figures["3.4_doctor.png"] = partial(problem3.draw_doctor, **drawn)
    return Findings(result, tables, texts, figures)


STUDIES = {  # the studies of 3.4 by flag: a function, or None for part_3_4's own code, and a help
    "diagnose": (None, "diagnosis by the doctor, no training"),
    "reproduce": (reproduction.reproduce, "the report's first steps, at its size"),
    "stems": (places.stems, "one training per stem"),
    "factorial": (places.factorial, "f in every set of places, with two recipes"),
    "exponents": (places.exponents, "x^p instead of x^2"),
}
PARTS = {"3.1": part_3_1, "3.2": part_3_2, "3.3": part_3_3, "3.4": part_3_4}
NEED_IMAGES = ("3.1", "3.4")


# ------------------------------------------------------------------------------ command line


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    prototype.add_flags(parser)
    width = "width of ResNet-36, as a multiple of the report's"
    add("--width", type=cli.up_to(8), default=1.0, help=width)
    residual = "f in the branches only, or after the sums too; give each its own --out"
    add("--residual", choices=RESIDUALS, default="branch", help=residual)
    gammas = "in the trained networks, start each block's last batch-norm gamma at 0"
    add("--zero-init-residual", action=argparse.BooleanOptionalAction, default=True, help=gammas)
    stem = (
        f"resnet36's two stem activations, +bn: batch norm, +dn: divisive norm: {'  '.join(STEMS)}"
    )
    add("--stem", choices=STEMS, default=BEST_STEM, metavar="STEM", help=stem)
    alone = parser.add_mutually_exclusive_group()
    for study, (_, words) in STUDIES.items():
        text = f"run 3.4 alone, in a folder of its own: {words}"
        alone.add_argument(f"--{study}", action="store_const", const=study, dest="study", help=text)
    steps = "3.4: steps to follow in each training of the divergence study"
    add("--steps", type=cli.positive, default=200, help=steps)
    cures = "--reproduce: steps to train with each change"
    add("--cure-steps", type=cli.positive, default=10, help=cures)
    add_flags(parser)
    parser.set_defaults(batch_size=64, warmup_epochs=1, crop_area=0.5, cutmix=0)
    return parser


def prepare(args: argparse.Namespace, folder: Path) -> Prepared:
    """Check the flags, draw the data set where a part needs it, and set up trainings."""
    needing = [number for number in args.parts if number in NEED_IMAGES]
    prototype.check_flags(args, needing)
    parallel.start(parallel.pick_device(args.device, args.gpus, args.threads))
    if args.study and args.parts != ["3.4"]:
        raise UserError(f"--{args.study} runs part 3.4 alone; name 3.4 or no part")
    if args.study == "reproduce" and job.size() > 1:
        raise UserError("--reproduce runs as one process; start it with python, not torchrun")
    drawn = prototype.draw(args) if needing else None
    sources = drawn.sets() if drawn else {}
    build = partial(ResNet36, args.classes or manifest.CLASSES, width=args.width)
    example = build if "3.4" in args.parts else None
    setup = runs.set_up(args, prototype.name(args), sources, folder, example)
    return Prepared(setup, drawn)


def forecast_seconds(number: str, prepared: Prepared) -> float:
    """Estimated seconds of a part on this machine; 0, which is not told, for 3.4's studies."""
    setup = prepared.setup
    if setup.args.study:
        return 0
    if number != "3.4":
        return 5
    specs = compared_networks(setup).values()
    followed = (len(changes_of_report(0)) + 2) * setup.args.steps * setup.args.batch_size
    trained = training_seconds(setup, specs, setup.args.seeds)
    return trained + followed / images_per_second(setup) + 10


def main() -> None:
    """Run the parts that the command line asks for."""
    args = make_parser().parse_args()
    if args.study and args.parts == list(PARTS):
        args.parts = ["3.4"]  # none was named
    # A study has its own folder, so that the networks of other calls are kept.
    folder = args.out / "problem3" / (args.study or "")
    prepared = prepare(args, results.open_folder(folder, args.parts))
    run_parts(PARTS, args, folder, prepared, forecast_seconds, prepared.setup.provenance)
    parallel.stop()


if __name__ == "__main__":
    sys.exit(guard(main))
