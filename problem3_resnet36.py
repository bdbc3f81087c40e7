"""Problem 3: does a 36-layer ResNet learn with the activation x^2 / 0.2x; why did it diverge?

Method: images are drawn from class folders, verified and kept as a manifest; the report's network
with the activation in stem and branches is trained beside ResNet-34 and itself with ReLU; the form
with it after the sums (assumed, the report does not say) is watched until it diverges, and changed
one thing at a time.
f is in common/networks/square_leaky.py, ResNet-36 in resnet36.py beside it.

    python problem3_resnet36.py --data DIR             all parts, DIR holds class folders
    python problem3_resnet36.py --data synthetic       all parts, embedded data
    python problem3_resnet36.py 3.4 --data DIR --diagnose     the doctor alone, no training
    python problem3_resnet36.py 3.4 --data DIR --reproduce    the report's own first steps
    python problem3_resnet36.py 3.4 --data DIR --exponents    what x^p costs, 48 small networks

Hardware: any CPU or GPU; at 64 px and half the width a training takes 12 to 17 minutes on one CPU
core with bf16 instructions, --reproduce about an hour and 11 GB.
Finding (README, outputs/published/problem3): with f after the sums 11 of 15 new networks of the
report's size are dead before their first step (loss near ln 650); one, followed, had NaN next. With
f in stem and branches, the stem divided by its power, no difference to ReLU shows: 72 and 71 % of
ten ImageNet classes at 64 px and half the width, +0.9 points (-0.9 to +2.5).
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
from common.networks import activations, doctor, summary
from common.networks.normalized import Normalized, seeded
from common.networks.resnet36 import (
    RELU_STEM,
    RESIDUALS,
    STEMS,
    ResNet36,
    new_network,
    resnet34_with,
)
from common.networks.square_leaky import ClampedSquareLeaky, SquareLeaky, square_leaky, where_form
from common.reporting import problem3, results
from common.reporting.parts import run_parts
from common.reporting.results import Findings
from common.reporting.tables import differences_table
from common.reporting.trainings import training_report, with_means
from common.studies import divergence, places, reproduction
from common.studies.divergence import REPORT_RECIPE, Followed
from common.training import loop, parallel, runs
from common.training.recipe import Recipe, add_flags
from common.training.runs import NetworkSpec, Setup, images_per_second, training_seconds

NAME_ENDS = {"branch": "", "sum": "_sum"}  # of networks, by where their activation is
REPORT_SIZE = (3, 224, 224)  # of the report's tables: channels, height, width
DEVIATIONS, SAMPLES = (0.5, 1.0, 2.0), 4_000_000  # of the normal input of part 3.3
TIMED_IMAGES, REPEATS = 4, 9  # of the activation's timing
BLOCK = re.compile(r"maxpool|layer\d\.\d+|fc")  # what a value passes through on its way down
LAST_STEPS = 10  # that a loss reached is averaged over
# The report's network and its training; the same training with f off the sums.
REPORT, BRANCH_BY_REPORT = "resnet36_sum", "resnet36_report_recipe"
BEST_STEM = "f,f+dn"  # on val, of those that keep f


# --------------------------------------------------------------------------- 3.1 the data set
@dataclass(frozen=True)
class Prepared:
    """What the parts share; the data set, `drawn`, is None where no part needs images."""

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
    shown = {"data": setup.data, "class_names": names, "pictures": pictures}
    samples = partial(problem3.draw_samples, **shown)
    return Findings(
        result,
        tables={"3.1_catalogue.txt": problem3.catalogue_table(result, setup.data)},
        texts={"3.1_manifest.csv": listing},
        figures={"3.1_samples.png": samples},
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
    text = problem3.summary_text(result, summary_tables(network))
    return Findings(result, tables={"3.2_summary.txt": text})


def summary_tables(network: ResNet36) -> dict[str, summary.Table]:
    """torchsummary's tables at 224 px of the stem, of each stage on its own, and of the whole.

    As in the report's Figures 22 to 24 the activation is not listed.
    """
    stem = (network.conv1, network.bn1, network.conv2, network.bn2, network.maxpool)
    parts = {"stem": nn.Sequential(*stem)}
    parts |= {f"layer{stage}": network.get_submodule(f"layer{stage}") for stage in (1, 2, 3, 4)}
    shown = {"input_size": REPORT_SIZE, "hide": ("SquareLeaky",)}
    whole = summary.summary_table(network, **shown)
    return {**summary.tables_in_turn(parts, **shown), "whole network": whole}


# ------------------------------------------------------------------------- 3.3 the activation
FORMS = {"f": square_leaky, "where": where_form, "ReLU": torch.relu}
# Each with what it is for x > 0 and x < 0, a x^p as (a, p).
POWERS = {"f": (square_leaky, (1, 2), (0.2, 1)), "ReLU": (torch.relu, (1, 1), (0, 1))}


def part_3_3(prepared: Prepared) -> Findings:
    """The activation: its curve, and what it does to a normal input."""
    device, seed = prepared.setup.device, prepared.setup.args.seed
    x = torch.arange(-300, 301, dtype=torch.float64) / 100  # with 0 itself
    named = {"f(x) = x^2, 0.2x": square_leaky, "ReLU": torch.relu}
    curves = {name: (f(x), activations.derivative(f, x)) for name, f in named.items()}
    moments = activations.normal_moments(POWERS, DEVIATIONS, SAMPLES, seed)
    shapes = activations.output_shapes(ResNet36, SquareLeaky, REPORT_SIZE)
    costs = activations.costs_by_shape(FORMS, shapes, TIMED_IMAGES, REPEATS, device)
    ratio = partial(activations.cost_ratio, costs)
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
    """The networks compared, by name: ResNet-34, and ResNet-36 with f, with less of it, without.

    resnet36 has f in all places that the flags name, resnet36_relu_stem in all but the stem,
    resnet36_relu in none. With the seed all of them see the same images in the same order,
    augmented alike: that is all that order and augmentation depend on.
    """
    args, end = setup.args, NAME_ENDS[setup.args.residual]
    gammas = {"zero_init_residual": args.zero_init_residual}
    ours = {"residual": args.residual, "width": args.width, **gammas}
    relu_stem, build = {**ours, "stem": RELU_STEM}, partial(ResNet36, setup.classes)
    compared = {
        "resnet34": (partial(resnet34, num_classes=setup.classes), gammas),
        f"resnet36{end}": (build, {**ours, "activation": "f", "stem": args.stem}),
        f"resnet36_relu_stem{end}": (build, {**relu_stem, "activation": "f"}),
        f"resnet36_relu{end}": (build, {**relu_stem, "activation": "ReLU"}),
    }
    return {name: NetworkSpec(name, partial(new_network, *how)) for name, how in compared.items()}


def name_beside_report(name: str) -> str:
    """A network's name beside the report's: with --residual sum both are resnet36_sum."""
    return f"{name}_flags_recipe" if name == REPORT else name


def report_network(setup: Setup, **changes) -> Normalized:
    """The report's ResNet-36, f after the sum, or with `changes` of the constructor's arguments."""
    arguments = {"residual": "sum", "width": setup.args.width, **changes}
    return seeded(partial(ResNet36, setup.classes, **arguments), setup.args.seed)


def forecast_all(setup: Setup) -> dict[str, dict]:
    """Forecast all networks, as `doctor.forecast` does; warn of overflow in one to be trained."""
    images, seed = divergence.first_images(setup), setup.args.seed
    trained = {
        name_beside_report(spec.name): spec.build(seed)[0]
        for spec in compared_networks(setup).values()
    }
    others = {REPORT: report_network(setup)}
    others["resnet34_f"] = resnet34_with(SquareLeaky, setup.classes, seed)
    forecasts = {
        name: doctor.forecast(network.to(setup.device), images, BLOCK)
        for name, network in {**trained, **others}.items()
    }
    for name in trained:
        if forecasts[name]["beyond_fp16"]:
            largest = doctor.RANGES["fp16"]
            job.say(problem3.overflow_warning(name, forecasts[name], largest), file=sys.stderr)
    return forecasts


# ------------------------------------------------------- 3.4 the divergence, one change at a time
BRANCH, TWO_CHANGES = "f off the sums", "(f inside the branch, rate 0.01)"
RESNET34_F = "(ResNet-34 with f for its ReLUs)"


def single_changes(half_epochs: float) -> dict[str, tuple[dict, dict]]:
    """The single changes to the report's training, by name.

    Each is (arguments of `ResNet36`, fields of the recipe). Half of the steps that are followed
    take `half_epochs`.
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
    }


def follow_changed(setup: Setup, name: str, arguments: dict, in_recipe: dict) -> Followed:
    """Follow the report's training with changes of its network's arguments and of its recipe."""
    build = partial(report_network, setup, **arguments)
    recipe = replace(setup.recipe, **{**REPORT_RECIPE, **in_recipe})
    return divergence.follow(setup, name, build, recipe, watch=name in ("none", BRANCH))


def part_3_4(prepared: Prepared) -> Findings:
    """Training beside ResNet-34, and why the report's network diverged."""
    setup, study = prepared.setup, prepared.setup.args.study
    run_study, _ = STUDIES.get(study, (None, ""))
    if run_study:
        return run_study(setup)
    args, end = setup.args, NAME_ENDS[setup.args.residual]
    forecasts, specs = forecast_all(setup), compared_networks(setup)
    job.say(", ".join([setup.tag, *problem3.remarks(args.residual, args.width)]))
    trained, recipe = {}, setup.recipe
    if not study:
        runs.train_side_by_side(setup, specs.values())
        trained = {name: runs.train_seeds(setup, spec) for name, spec in specs.items()}
        recipe = replace(recipe, precision=trained[f"resnet36{end}"][0]["precision"])
    changed, others = follow_changes(setup)
    watched = {
        REPORT: changed["none"],
        BRANCH_BY_REPORT: changed[BRANCH],
        name_beside_report(f"resnet36{end}"): follow_as_trained(setup, recipe),
    }
    control, not_found = f"resnet36_relu{end}", dict.fromkeys(divergence.PLACE)
    result = {
        "networks": {
            name: {"epochs": network["runs"][0]["history"], **network}
            for name, network in with_means(trained, len(setup.packed["test"])).items()
        },
        "differences": runs.differences(
            trained, [(name, control) for name in trained if name != control]
        ),
        "forecast": forecasts,
        "divergence": {"network": REPORT, **(watched[REPORT].divergence or not_found)},
        "beyond_range": {name: followed.beyond for name, followed in watched.items()},
        "dead": {name: followed.dead for name, followed in watched.items()},
        "single_changes": change_rows(changed),
        "not_single_changes": change_rows(others),
        "steps": args.steps,
        "chance_loss": math.log(setup.classes),
        "residual": args.residual,
        "stem": args.stem,
        "width": args.width,
        "init": "scratch" + (", last gammas at 0" if args.zero_init_residual else ""),
        "recipe": recipe.as_dict(),
    }
    return findings_3_4(setup, result, trained, watched)


def follow_changes(setup: Setup) -> tuple[dict[str, Followed], dict[str, Followed]]:
    """Follow the single changes to the report's training, and the two trainings beside them."""
    half_epochs = setup.args.steps / 2 / loop.steps_per_epoch(setup.packed["train"], setup.recipe)
    changed = {
        name: follow_changed(setup, name, *changes)
        for name, changes in single_changes(half_epochs).items()
    }
    branch, slower = {"residual": "branch"}, {"learning_rate": 0.01}
    f_in_resnet34 = partial(resnet34_with, SquareLeaky, setup.classes, setup.args.seed)
    recipe = replace(setup.recipe, **REPORT_RECIPE)
    return changed, {
        TWO_CHANGES: follow_changed(setup, TWO_CHANGES, branch, slower),
        RESNET34_F: divergence.follow(setup, RESNET34_F, f_in_resnet34, recipe),
    }


def follow_as_trained(setup: Setup, recipe: Recipe) -> Followed:
    """Follow the network of the flags by the recipe that it was trained by."""
    args = setup.args
    spec = compared_networks(setup)[f"resnet36{NAME_ENDS[args.residual]}"]
    name = f"{name_beside_report(spec.name)}, as trained"
    flags = {"stem": args.stem, "residual": args.residual}
    flags["zero_init_residual"] = args.zero_init_residual
    return divergence.follow(
        setup, name, lambda: spec.build(args.seed)[0], recipe, watch=True, **flags
    )


def change_rows(trainings: dict[str, Followed]) -> list[dict]:
    """A row a training that was followed: its change, and the keys of `Followed.result`."""
    return [{"change": name, **followed.result(LAST_STEPS)} for name, followed in trainings.items()]


def findings_3_4(
    setup: Setup, result: dict, trained: dict[str, list[dict]], watched: dict[str, Followed]
) -> Findings:
    """Put together 3.4's findings: its result, the tables, the doctor's rows and the figures."""
    args, blocks = setup.args, [*result["forecast"][REPORT]["blocks"]]
    remarks = problem3.remarks(args.residual, args.width)
    as_trained = setup.tag_in(result["recipe"]["precision"])
    trained_tag = ", ".join([as_trained, *remarks, f"seed {args.seed}"])
    size = [f"{args.image_size} px", setup.device.type, *problem3.width_words(args.width)]
    tag, tables, figures = ", ".join([setup.data, *size]), {}, {}
    if trained:
        caption = ", ".join([*remarks, f"init {result['init']}, stem of resnet36: {args.stem}"])
        tables, figures = training_report(setup, "3.4", trained, caption)
        tables["3.4_differences.txt"] = differences_table(result["differences"], trained_tag)
    recipe = problem3.recipe_words(REPORT_RECIPE)
    tables["3.4_forecast.txt"] = problem3.forecast_table(result, trained_tag)
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


STUDIES = {  # flags of 3.4, each with its function, if it has one of its own, and its help
    "diagnose": (None, "the doctor, no training"),
    "reproduce": (reproduction.reproduce, "the report's own first steps, at its own size"),
    "stems": (places.stems, "the stems, a training each"),
    "factorial": (places.factorial, "f in each set of places, by two recipes"),
    "exponents": (places.exponents, "x^p for x^2"),
}
PARTS = {"3.1": part_3_1, "3.2": part_3_2, "3.3": part_3_3, "3.4": part_3_4}
NEED_IMAGES = ("3.1", "3.4")


# ------------------------------------------------------------------------------ command line


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    prototype.add_flags(parser)
    add("--cache", type=cli.path, default=Path("data/cache"), help="folder of the packed cache")
    add("--skip-bad", action="store_true", help="leave bad images out, listed (default: stop)")
    add("--image-size", type=cli.at_least(32, 2048), default=224, help="side of the input in px")
    add("--width", type=cli.up_to(8), default=1.0, help="of ResNet-36, in the report's widths")
    residual = "f in each branch alone, or after the sum too"
    add("--residual", choices=RESIDUALS, default="branch", help=residual)
    gammas = "of the networks trained: gamma of each block's last batch norm starts at 0"
    add("--zero-init-residual", action=argparse.BooleanOptionalAction, default=True, help=gammas)
    stem = (
        f"of resnet36, two activations with a batch (bn) or divisive (dn) norm: {'  '.join(STEMS)}"
    )
    add("--stem", choices=STEMS, default=BEST_STEM, metavar="STEM", help=stem)
    alone = parser.add_mutually_exclusive_group()
    for study, (_, words) in STUDIES.items():
        text = f"3.4 alone, into a folder of its own: {words}"
        alone.add_argument(f"--{study}", action="store_const", const=study, dest="study", help=text)
    add("--steps", type=cli.positive, default=200, help="3.4: steps of the doctor and each change")
    cures = "--reproduce: steps of each change at the report's size"
    add("--cure-steps", type=cli.positive, default=10, help=cures)
    parallel.add_flag(parser)
    add_flags(parser)
    parser.set_defaults(batch_size=64, warmup_epochs=1, crop_area=0.5, cutmix=0)
    return parser


def prepare(args: argparse.Namespace, folder: Path) -> Prepared:
    """Check the flags, draw the data set where a part needs it, and set up trainings."""
    needing = [number for number in args.parts if number in NEED_IMAGES]
    prototype.check_flags(args, needing)
    parallel.start(parallel.pick_device(args.device, args.gpus, args.threads))
    if args.study and args.parts != ["3.4"]:
        raise UserError(f"--{args.study} is of part 3.4 alone; name it, or leave the parts out")
    if args.study == "reproduce" and job.size() > 1:
        raise UserError("--reproduce runs as one process; leave torchrun out")
    drawn = prototype.draw(args) if needing else None
    sources = drawn.sets() if drawn else {}
    if sources:
        parallel.check_images(min(len(source.labels) for source in sources.values()))
    build = partial(ResNet36, args.classes or manifest.CLASSES, width=args.width)
    example = build if "3.4" in args.parts else None
    setup = runs.set_up(args, prototype.name(args), sources, folder, example)
    return Prepared(setup, drawn)


def forecast_seconds(number: str, prepared: Prepared) -> float:
    """About how long a part takes on this machine, apart from the studies of 3.4."""
    setup = prepared.setup
    if number != "3.4":
        return 5
    specs = () if setup.args.study else compared_networks(setup).values()
    followed = (len(single_changes(0)) + 3) * setup.args.steps * setup.args.batch_size
    trained = training_seconds(setup, specs, setup.args.seeds)
    return trained + followed / images_per_second(setup) + 10


def main() -> None:
    """Run the parts that the command line asks for."""
    args = make_parser().parse_args()
    if args.study and args.parts == list(PARTS):
        args.parts = ["3.4"]  # none was named
    # Of its own, so that the networks trained before are kept.
    folder = args.out / "problem3" / (args.study or "")
    prepared = prepare(args, results.open_folder(folder, args.parts))
    run_parts(PARTS, args, folder, prepared, forecast_seconds, prepared.setup.provenance)
    parallel.stop()


if __name__ == "__main__":
    sys.exit(guard(main))
