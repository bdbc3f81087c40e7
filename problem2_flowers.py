"""Problem 2: what does EfficientNetV2-S learn from the 1,020 images of Oxford Flowers-102?

Method: the official splits are decoded once into a packed cache. One loop trains all compared
networks on augmented batches, with the same seeds and budget. The epoch is chosen on val, and test
is evaluated once, with that epoch's weights. Baselines classify without training a network; the
features of the best one, VGG-16's, can also serve as a teacher, and --solve-head solves the last
layer anew after the training.

    python problem2_flowers.py 2.2 --data-root DIR --image-size 64 --epochs 48 --solve-head
    python problem2_flowers.py 2.2 --data-root DIR --image-size 64 --epochs 48 --teacher vgg16
    python problem2_flowers.py 2.2 --data synthetic --image-size 64 --epochs 10   embedded data
    torchrun --nproc-per-node 2 problem2_flowers.py 2.3                           two processes

Hardware: any CPU or GPU. Minutes on 2 CPU cores: over 20 for the first command's training and up to
30 for baselines, once; 4 for the third; the defaults (224 px, 150 epochs) are for a GPU.
Finding (with the flags of make published RUNS="2.2 taught"): from scratch, at 64 px and in 48
epochs, 40.4 % of test are classified correctly (three trainings, 95 % interval 39.2 - 41.6), with
VGG-16 as a teacher 52.5 %; chance is 0.98 %, the nearest colour histogram has 26.4 %, a linear
classifier of VGG-16's features 72.4 %, and the report had 1.46 %.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common.start  # noqa: F401 it handles Ctrl-C while the others load

# isort: split
import argparse
import itertools
import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.models import EfficientNet, efficientnet_v2_s

from common import cli, files
from common.data import flowers, sets, streams
from common.data.augment import Draws
from common.data.images import to_uint8
from common.errors import UserError, guard
from common.job import say
from common.networks import efficientnet, gradcam, summary, widening
from common.networks.normalized import Normalized, seeded
from common.networks.timing import median_seconds
from common.reporting import plotting, problem2, results
from common.reporting.parts import run_parts
from common.reporting.results import Findings
from common.reporting.statistics import over_seeds, with_means
from common.reporting.tables import differences_table, training_report
from common.studies import baselines, cams, modes
from common.studies import teacher as teaching
from common.training import parallel, recipe, runs
from common.training.runs import NetworkSpec, Setup, differences, train_seeds, training_seconds

# Names of networks; the wide networks' names have their width (`wide_name`).
NARROW, CONTINUED, NOISE_BLOCK = "efficientnet_v2_s", "efficientnet_v2_s_continued", "noise_block"
# Tan & Le 2021, section 5.2, fine-tune at a rate of 0.001 with 512 images a step, without weight
# decay or mixing. For 32 images the rate is scaled by the square root (Malladi et al. 2022).
FINE_TUNING = {"lr": 2.5e-4, "epochs": 30, "weight_decay": 0.0, "cutmix": 0.0, "stages": 1}
CONTINUE_RATE = 0.1  # in --lr, for networks that start from a trained one: keeps what it learnt
SYMMETRY_NOISE = 0.01  # relative noise on copied weights, so that the copies can diverge
TIMED_BATCHES = 30  # of the noise block's timing


# --------------------------------------------------------------------------- the networks compared
def networks(setup: Setup, *parts: str) -> dict[str, NetworkSpec]:
    """The networks that parts train, by name: their starts and their changes of the recipe."""
    wide = wide_name(setup)
    onward = {"learning_rate": setup.args.lr * CONTINUE_RATE, "stages": 1}  # the size stays full
    covered = replace(setup.recipe.augmentation, block=noise_block(setup.args))
    trained = [
        (("2.2", "2.3", "2.5", "2.6"), NARROW, start_narrow, {}, ""),
        (("2.3", "2.4", "2.6"), wide, start_wide, {}, ""),
        (("2.3",), CONTINUED, start_continued, onward, NARROW),
        (("2.3",), f"{wide}_from_narrow", start_wide_from_narrow, onward, NARROW),
        (("2.5", "2.6"), NOISE_BLOCK, start_narrow, {"augmentation": covered}, ""),
    ]
    return {
        name: NetworkSpec(name, partial(start, setup), changes, after)
        for of_parts, name, start, changes, after in trained
        if not set(parts).isdisjoint(of_parts)
    }


def wide_name(setup: Setup) -> str:
    """The wide network's name, which has its width, such as wide_1.1."""
    return f"wide_{setup.args.width:g}"


def train_networks(setup: Setup, part: str, seeds: int | None = None) -> dict[str, list[dict]]:
    """Train a part's networks once per seed (default: --seeds); returns their runs by name.

    With --jobs the networks of all requested parts are trained side by side, and so are 2.2's
    baselines, if two networks or more are still to be trained.
    """
    kept = partial(baselines.kept_baselines, setup)
    beside = {"baselines": kept} if "2.2" in setup.args.parts else None
    runs.train_side_by_side(setup, networks(setup, *setup.args.parts).values(), beside)
    specs = networks(setup, part)
    return {name: train_seeds(setup, spec, seeds) for name, spec in specs.items()}


def start_narrow(setup: Setup, seed: int) -> tuple[Normalized, dict]:
    """torchvision's EfficientNetV2-S with the start that the flags choose, and its identity."""
    args = setup.args
    network, init, new = efficientnet.build(setup.classes, args.init, seed)
    flags = zero_start(args, network, head=bool(new), blocks=init == "scratch")
    return Normalized(network), {"init": init, **flags}


def start_wide(setup: Setup, seed: int) -> tuple[Normalized, dict]:
    """EfficientNetV2-S with every stage --width times as wide, from scratch, and its identity."""
    args = setup.args
    network = seeded(lambda: widening.wide_efficientnet(setup.classes, args.width), seed)
    flags = zero_start(args, network.network, head=True, blocks=True)
    return network, {"width": args.width, **flags}


def zero_start(args: argparse.Namespace, network: EfficientNet, head: bool, blocks: bool) -> dict:
    """Apply --zero-head to a new head, --zero-init-residual to new blocks; returns both flags."""
    if head and args.zero_head:
        efficientnet.zero_head(network)
    if blocks and args.zero_init_residual:
        efficientnet.zero_residuals(network)
    return {"zero_head": args.zero_head, "zero_init_residual": args.zero_init_residual}


def start_wide_from_narrow(setup: Setup, seed: int) -> tuple[Normalized, dict]:
    """A wide network with a trained narrow one's function but for noise, and its identity."""
    path, _, wide = widened(setup, seed)
    widening.break_symmetry(wide, SYMMETRY_NOISE, streams.mixed_seed(seed, streams.SYMMETRY))
    narrow = f"SHA-256 {files.sha256_of(path)}"
    about = {"narrow": narrow, "width": setup.args.width, "symmetry_noise": SYMMETRY_NOISE}
    return wide, about


def start_continued(setup: Setup, seed: int) -> tuple[Normalized, dict]:
    """The trained narrow network, the control of the one widened from it, and its identity."""
    path = narrow_file(setup, seed)
    network, _ = efficientnet.trained(path, setup.classes)
    return Normalized(network), {"narrow": f"SHA-256 {files.sha256_of(path)}"}


def narrow_file(setup: Setup, seed: int) -> Path:
    """The file of the trained narrow network: --from-narrow's, or that of the run with this seed.

    Raises:
        KeyError: that run has not been made in this call.
    """
    if setup.args.from_narrow:
        return setup.args.from_narrow
    folder = runs.run_folder(setup, NARROW, seed, setup.args.gpus)
    return Path(runs.finished_run(setup, folder)["weights"])


# ------------------------------------------------------------------------------------ 2.1 summary
def part_2_1(setup: Setup) -> Findings:
    """The data set: splits, resolutions, classes."""
    splits, sizes, counts, sources = {}, {}, {}, dict(setup.sources)
    if setup.args.skip_bad and setup.args.data == "flowers102":  # drawn ones are never bad
        sources = {
            split: source.only(setup.packed[split].rows) for split, source in sources.items()
        }
    if setup.args.originals:
        sources["originals"] = sets.class_folders("originals", setup.args.originals)
    for split, source in sources.items():
        sizes[split] = Counter(source.size(index) for index in range(len(source.labels)))
        of_class = np.bincount(source.labels)
        splits[split] = {
            "images": len(source.labels),
            "classes": int((of_class > 0).sum()),
            "resolutions": len(sizes[split]),
            "top_resolutions": sets.top_resolutions(sizes[split]),
            "images_per_class": [int(of_class.min()), int(of_class.max())],
        }
        if split in setup.sources:  # originals have classes of their own
            counts[split] = of_class
    names, pictures = sets.sample_pictures({s: sources[s] for s in counts}, setup.args.seed)
    figures = problem2.data_figures(setup.data, sizes, counts, names, pictures)
    result = {"splits": splits, "sample_classes": names}
    return Findings(result, problem2.split_tables(setup.data, splits), figures=figures)


# -------------------------------------------------------------------------------------- 2.2 train
def part_2_2(setup: Setup) -> Findings:
    """EfficientNetV2-S, trained."""
    args, init = setup.args, problem2.init_words(setup.args)
    bare = summary.without_weights(partial(efficientnet_v2_s, num_classes=setup.classes))
    trained = train_networks(setup, "2.2")[NARROW]
    beside = baselines.baselines(setup)
    rows = [{"network": name, **row} for name, row in beside.items()]
    result = {
        "parameters": summary.count_parameters(bare),
        "parameters_report": widening.report_counts(),
        "epochs": args.epochs,
        "init": init,
        "recipe": replace(setup.recipe, precision=trained[0]["precision"]).as_dict(),
        **over_seeds(trained, len(setup.packed["test"])),
        "chance": 100 / setup.classes,
        "baselines": beside,
        "teacher": teaching.describe(setup),
        "runs": trained,
    }
    tables, figures = training_report(setup, "2.2", {NARROW: trained}, f"init {init}", rows)
    return Findings(result, tables, layer_summary("2.2", bare, args.image_size), figures)


def layer_summary(part: str, bare: EfficientNet, image_size_px: int) -> dict[str, str]:
    """torchsummary's table of a network, by its file name; its last 7 lines are printed."""
    text = str(summary.summary_table(bare, (3, image_size_px, image_size_px)))
    say("Last 7 lines of torchsummary:", *text.rstrip().splitlines()[-7:])
    return {f"{part}_summary.txt": text}


# -------------------------------------------------------------------------------------- 2.3 widen
def part_2_3(setup: Setup) -> Findings:
    """EfficientNetV2-S truly widened: narrow, wide, and wide from the narrow one.

    The trained narrow network is trained further, for as many epochs as the one widened from it.
    """
    args, classes, wide_one = setup.args, setup.classes, wide_name(setup)
    narrow = summary.without_weights(partial(efficientnet_v2_s, num_classes=classes))
    wide = summary.without_weights(lambda: widening.wide_efficientnet(classes, args.width))
    trained, from_narrow = train_networks(setup, "2.3"), f"{wide_one}_from_narrow"
    pairs = [(wide_one, NARROW), (from_narrow, CONTINUED), (CONTINUED, NARROW)]
    result = {
        "parameters": summary.count_parameters(wide),
        "parameters_narrow": summary.count_parameters(narrow),
        "parameters_report": widening.report_counts(),
        "width": args.width,
        "stages": efficientnet.stage_rows(narrow, wide, args.image_size),
        "max_logit_difference": logit_difference(setup),
        "teacher": teaching.describe(setup),
        "symmetry_noise": SYMMETRY_NOISE,
        "runs": with_means(trained, len(setup.packed["test"])),
        "differences": differences(trained, pairs),
    }
    words = problem2.init_words(args)
    if args.init != "scratch":
        words += f"; {wide_one} from scratch, by the recipe of fine-tuning"
    compared = result["differences"]
    tables, figures = training_report(setup, "2.3", trained, f"init {words}", differences=compared)
    tables["2.3_stages.txt"] = problem2.stages_table(result, classes, args.image_size)
    return Findings(result, tables, layer_summary("2.3", wide, args.image_size), figures)


def widened(setup: Setup, seed: int) -> tuple[Path, Normalized, Normalized]:
    """Widen a trained narrow network, and return its file, itself and the wide network."""
    path = narrow_file(setup, seed)
    (narrow, _), (wide, _) = start_continued(setup, seed), start_wide(setup, seed)
    widening.widen_from(narrow.network, wide.network, streams.mixed_seed(seed, streams.WIDEN))
    return path, narrow, wide


def logit_difference(setup: Setup) -> float:
    """The largest difference between narrow and widened logits, on val images and on noise."""
    val, seed = setup.packed["val"], setup.args.seed
    path, narrow, wide = widened(setup, seed)
    first = torch.arange(min(8, len(val)))
    images, _ = val.squares(first, setup.args.image_size, torch.device("cpu"))
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed))
    difference = widening.max_logit_difference(narrow, wide, torch.cat([images, noise]))
    say(f"widened from {path}: logits differ from the narrow network's by at most {difference:.2g}")
    return difference


# ----------------------------------------------------------------------------------- 2.4 two GPUs
def part_2_4(setup: Setup) -> Findings:
    """One process, DataParallel and DistributedDataParallel on the wide network."""
    args, spec = setup.args, networks(setup, "2.4")[wide_name(setup)]
    rows, compared = modes.in_each_mode(setup, spec, max(2, args.gpus))
    tag = setup.tag_in(next(row["precision"] for row in rows if "precision" in row))
    tag = f"{spec.name}, {tag}, {args.epochs} epochs, {args.seeds} seed(s) from {args.seed}"
    tables = {
        "2.4_parallel.txt": problem2.modes_table(tag, args.batch_size, setup.device.type, rows),
        "2.4_differences.txt": differences_table(compared, tag),
    }
    return Findings({"runs": rows, "differences": compared}, tables)


# --------------------------------------------------------------------------------- 2.5 noise block
@dataclass(frozen=True)
class NoiseBlock:
    """Random rectangles of noise on some of the images, made on their device.

    Each image has its own rectangle with probability `prob`: its share of the area is uniform in
    [area_low, area_high], its aspect ratio log-uniform in [1/2, 2] where both sides fit, its place
    uniform. `kind`: "uniform" in [0, 1), or "gaussian" with mean 1/2, deviation 1/4, clipped.
    """

    prob: float
    area_low: float
    area_high: float
    kind: str = "uniform"

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Copy float images (N, 3, H, W) in [0, 1], with a block on some of them."""
        places, height, width = draws.another(streams.BLOCK), *images.shape[2:]
        area = places.uniform(self.area_low, self.area_high)
        root_ratio = torch.exp(places.uniform(-0.5, 0.5) * math.log(2))
        tall = (area.sqrt() * root_ratio).clamp(min=area, max=torch.ones_like(area))
        covered = places.uniform(0, 1) < self.prob
        rows = _span(tall, places.uniform(0, 1), height)
        columns = _span(area / tall, places.uniform(0, 1), width)
        inside = rows[:, :, None] & columns[:, None, :] & covered[:, None, None]
        noisy, generator = images.clone(), draws.another(streams.BLOCK_NOISE).on_device()
        options = {"generator": generator, "device": images.device, "dtype": images.dtype}
        draw = torch.rand if self.kind == "uniform" else torch.randn
        noise = draw(int(inside.sum()), images.shape[1], **options)  # for covered pixels alone
        if self.kind == "gaussian":
            noise = (0.5 + noise / 4).clamp(0, 1)
        noisy.permute(0, 2, 3, 1)[inside] = noise
        return noisy


def _span(length: Tensor, place: Tensor, size_px: int) -> Tensor:
    """Bool (N, size_px): spans of `length` (in sides) at `place`, 0 at the start, 1 at the end."""
    length_px = (length * size_px).round().clamp(min=1)
    start_px = ((size_px - length_px + 1) * place).floor()
    pixels = torch.arange(size_px, device=length.device)[None]
    return (pixels >= start_px[:, None]) & (pixels < (start_px + length_px)[:, None])


def noise_block(args: argparse.Namespace) -> NoiseBlock:
    """The noise block that the flags --noise-prob, --noise-area and --noise ask for."""
    return NoiseBlock(args.noise_prob, *args.noise_area, args.noise)


def part_2_5(setup: Setup) -> Findings:
    """The noise block, with and without."""
    block, trained = noise_block(setup.args), train_networks(setup, "2.5")
    last = trained[NOISE_BLOCK][0]["history"][-1]  # at full size, as the block is timed
    threads = torch.get_num_threads()
    torch.set_num_threads(last.get("threads", threads))  # earlier runs lack it
    seconds = block_seconds(setup, block)
    torch.set_num_threads(threads)
    step_seconds = setup.args.batch_size / last["images_per_second"]
    say(f"the noise block takes {1000 * seconds:.2f} ms of a {1000 * step_seconds:.0f} ms step")
    result = {
        "noise_block": asdict(block),
        "runs": with_means(trained, len(setup.packed["test"])),
        "differences": differences(trained, [(NOISE_BLOCK, NARROW)]),
        "block_seconds": seconds,
        "teacher": teaching.describe(setup),
        "step_cost_share": seconds / step_seconds,
    }
    words = problem2.init_words(setup.args)
    compared = result["differences"]
    tables, figures = training_report(setup, "2.5", trained, f"init {words}", differences=compared)
    headers, pictures = covered_pictures(setup, block)
    area = f"area {block.area_low:g} to {block.area_high:g}"
    title = f"Noise block ({block.kind}), {area}: {setup.data}"
    figure = partial(plotting.image_grid, title=title, headers=headers, rows=pictures)
    figures["2.5_noise_block.png"] = figure
    return Findings(result, tables, figures=figures)


def block_seconds(setup: Setup, block: NoiseBlock) -> float:
    """The median seconds that the block takes for a batch, after a warm-up."""
    count, size_px, device = setup.args.batch_size, setup.args.image_size, setup.device
    images = torch.rand(count, 3, size_px, size_px, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    draws = (Draws(0, streams.AUGMENT, 0, step, count, device) for step in itertools.count())
    return median_seconds(lambda: block(images, next(draws)), device, TIMED_BATCHES)


def covered_pictures(setup: Setup, block: NoiseBlock) -> tuple[list[str], dict[str, list]]:
    """Classes of up to 5 train images, and the images, uint8 (H, W, 3): "original", "covered"."""
    train, cpu = setup.packed["train"], torch.device("cpu")
    rows = torch.linspace(0, len(train) - 1, min(5, len(train))).long()  # of several classes
    images, labels = train.squares(rows, setup.args.image_size, cpu)
    draws = Draws(setup.args.seed, streams.AUGMENT, 0, 0, len(images), cpu)
    batches = {"original": images, "covered": replace(block, prob=1.0)(images, draws)}
    pictures = {name: [to_uint8(image) for image in batch] for name, batch in batches.items()}
    return [train.class_names[label] for label in labels], pictures


# ------------------------------------------------------------------------------------ 2.6 Grad-CAM
def part_2_6(setup: Setup) -> Findings:
    """Grad-CAM of the narrow, wide and noise-block networks."""
    trained = {name: run for name, (run,) in train_networks(setup, "2.6", seeds=1).items()}
    specs, tag = networks(setup, "2.6"), setup.tag_in(trained[NARROW]["precision"])
    loaded = {name: cams.load_trained(setup, specs[name], run) for name, run in trained.items()}
    # The sanity check (Adebayo et al. 2018): maps that show the flower without training say
    # nothing about what was learnt. The head is torchvision's, since a zero head has no gradient.
    bare = partial(efficientnet_v2_s, num_classes=setup.classes)
    untrained = seeded(bare, setup.args.seed)
    return cams.measure(setup, loaded, untrained, tag)


# ------------------------------------------------------------------------------------ command line
PARTS = {
    "2.1": part_2_1,
    "2.2": part_2_2,
    "2.3": part_2_3,
    "2.4": part_2_4,
    "2.5": part_2_5,
    "2.6": part_2_6,
}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add, kinds = parser.add, ("flowers102", "synthetic")
    data = "Oxford Flowers-102, or synthetic: embedded drawn flowers"
    add("--data", choices=kinds, default="flowers102", help=data)
    root = "folder that holds flowers-102; if missing, it is downloaded there"
    add("--data-root", type=cli.path, default=Path("data"), help=root)
    full = "class folders of full-size photos; 2.1 counts their resolutions too (default: none)"
    add("--originals", type=cli.path, metavar="DIR", help=full)
    add("--classes", type=cli.positive, default=10, help="number of classes of the embedded data")
    count = "training images per embedded class (test: as many, val: half)"
    add("--images-per-class", type=cli.at_least(1, 10_000), default=100, help=count)
    init = "initial weights: scratch, imagenet or a file"
    add("--init", type=cli.word_or_path, default="scratch", help=init)
    zero = {"action": argparse.BooleanOptionalAction}
    head = "start a new head with zero weights (default: yes; no: random)"
    add("--zero-head", **zero, help=head)
    gammas = "in new networks, start each block's last batch-norm gamma at 0 (default: yes; no: 1)"
    add("--zero-init-residual", **zero, help=gammas)
    parser.set_defaults(zero_head=True, zero_init_residual=True)
    taught = "also learn to predict VGG-16's features of each place (default: no teacher)"
    add("--teacher", choices=("vgg16",), help=taught)
    width = "width of the wide network, as a multiple of the narrow one's"
    add("--width", type=cli.up_to(8), default=1.1, help=width)
    narrow = "weights of a trained narrow network for 2.3 (default: those of 2.2)"
    add("--from-narrow", type=cli.path, metavar="FILE", help=narrow)
    prob = "probability that an image gets a noise block"
    add("--noise-prob", type=cli.fraction, default=0.5, help=prob)
    low_high = {"nargs": 2, "metavar": ("LOW", "HIGH"), "default": (0.05, 0.3)}
    area = "smallest and largest area of the noise block, as fractions of the image"
    add("--noise-area", type=cli.fraction, **low_high, help=area)
    noises, noise = ("uniform", "gaussian"), "distribution of the noise in the block"
    add("--noise", choices=noises, default="uniform", help=noise)
    add("--layer", default="features.6", help="feature layer for Grad-CAM, by name")
    shown = "number of right and of wrong test images in the Grad-CAM figures"
    add("--images", type=cli.positive, default=6, help=shown)
    pointing = "number of test images that get Grad-CAM maps"
    add("--pointing-images", type=cli.positive, default=300, help=pointing)
    curves = "number of these used for deletion and insertion"
    add("--curve-images", type=cli.positive, default=32, help=curves)
    recipe.add_flags(parser)
    parser.set_defaults(epochs=150, cutmix=0.8, clip_norm=1.0, stages=3)
    return parser


def parse_args(words: list[str] | None = None) -> argparse.Namespace:
    """Parse the flags; an --init other than scratch has the defaults of fine-tuning."""
    parser = make_parser()
    args = parser.parse_args(words)
    if args.init != "scratch":
        parser.set_defaults(**FINE_TUNING)
        args = parser.parse_args(words)
    return args


def read_data(args: argparse.Namespace) -> tuple[str, dict[str, sets.FileSet | sets.DrawnSet]]:
    """The name of --data in tables, and its splits train, val and test, not yet decoded.

    Raises:
        UserError: the data is missing, or the embedded data cannot have so many classes.
    """
    if args.data == "flowers102":
        return "Oxford Flowers-102", sets.flowers102(args.data_root)
    classes, most = args.classes, flowers.NUM_CLASSES
    if not 2 <= classes <= most:
        raise UserError(f"--classes {classes}: the embedded data set has 2 to {most} classes")
    train = args.images_per_class * classes
    counts = {"train": train, "val": max(classes, train // 2), "test": train}
    drawn = {split: sets.DrawnSet(split, n, classes, args.seed) for split, n in counts.items()}
    return f"EMBEDDED DRAWN FLOWERS, {classes} classes", drawn


def prepare(args: argparse.Namespace, folder: Path) -> Setup:
    """Set up what the parts share; raises UserError early for what would fail later."""
    if args.width <= 1:
        raise UserError(f"--width {args.width:g}: give a width above 1, such as 1.1")
    if args.originals and not args.originals.is_dir():
        raise UserError(
            f"--originals {args.originals}: no such folder; give a folder of class folders"
        )
    low, high = args.noise_area
    if not 0 < low <= high < 1:
        raise UserError(f"--noise-area {low:g} {high:g}: give two fractions, 0 < LOW <= HIGH < 1")
    parallel.start(parallel.pick_device(args.device, args.gpus, args.threads))  # before a download
    data, sources = read_data(args)
    counts = {split: len(source.labels) for split, source in sources.items()}
    say(f"{data}: {', '.join(f'{count:,} {split}' for split, count in counts.items())} images")
    classes = len(sources["train"].class_names)
    build = partial(efficientnet_v2_s, num_classes=classes)
    if args.init not in ("scratch", "imagenet") and set(args.parts) - {"2.1", "2.4"}:
        efficientnet.load_but_head(build(), Path(args.init))
    if args.from_narrow and "2.3" in args.parts:
        say(efficientnet.trained(args.from_narrow, classes)[1])
    if "2.6" in args.parts:
        gradcam.feature_layer(summary.without_weights(build), args.layer, args.image_size)
    example = build if args.parts != ["2.1"] else None
    return replace(runs.set_up(args, data, sources, folder, example), teach=teaching.teacher)


def forecast_seconds(part: str, setup: Setup) -> float:
    """Estimated seconds of a part on this machine, mostly for its trainings."""
    specs = [*networks(setup, part).values()]
    if setup.args.jobs > 1 and specs:  # the first part trains the other parts' networks too
        specs = [*networks(setup, *setup.args.parts).values()]
    if part == "2.4":  # the same network in several processes too
        spec = networks(setup, part)[wide_name(setup)]
        specs.append(replace(spec, name=f"{spec.name}-ddp{max(2, setup.args.gpus)}"))
    images = sum(len(source.labels) for source in setup.sources.values())
    others = {"2.2": 0.06 * images, "2.6": 15}.get(part, 5)  # of baselines, of maps
    seeds = 1 if part == "2.6" else setup.args.seeds
    return training_seconds(setup, specs, seeds) + others


def main() -> None:
    """Run the parts that the command line asks for."""
    args = parse_args()
    folder = results.open_folder(args.out / "problem2", args.parts)
    setup = prepare(args, folder)
    run_parts(PARTS, args, folder, setup, forecast_seconds, setup.provenance)
    parallel.stop()


if __name__ == "__main__":
    sys.exit(guard(main))
