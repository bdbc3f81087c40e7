"""Problem 1: how do pixel and VGG-16 feature losses respond to a one-pixel shift and to noise?

Method: a photo is compared with its translated and its noisy copy by l1, l2, PSNR and SSIM, by
the distance of VGG-16's feature maps, and by LPIPS. Every loss is calibrated: divided by the same
loss between unrelated pictures, so that 0 is "the same" and 1 is "another picture".

    python problem1_perceptual.py                      all parts, the embedded photos
    python problem1_perceptual.py 1.1 --image FILE     one part, an image of yours

Hardware: any CPU or GPU; on 2 CPU cores all parts take two to four minutes and 2 GiB.
Finding (README, outputs/published/problem1): of the report's four layers relu5_3 takes the shift
(0.02 of "another picture") and noise of sigma 25 (0.43) best, as the report has it. Robust it is
not: that noise costs it six times what it costs l2, and noise of sigma 2.2 as much as the shift.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common.start  # noqa: F401 it handles Ctrl-C while the others load

# isort: split
import argparse
import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor
from torchvision.models import vgg16

from common import cli, job
from common.data import images
from common.data.streams import generator
from common.errors import UserError, guard
from common.job import progress
from common.networks import summary
from common.networks.calibration import Calibrated, References, calibrated_losses, summarise
from common.networks.losses import pixel_losses, psnr, ssim, wrapped_uint8_losses
from common.networks.vgg import LAYERS, LPIPS_TAPS, VGG16Features, by_depth, layer_name
from common.networks.weights import Weights, load_vgg16, random_vgg16
from common.reporting import html, plotting, problem1, results
from common.reporting.statistics import bootstrap_interval, bootstrap_nearest
from common.training.parallel import pick_device

REPORT_LAYERS, SECONDS_A_MEGAPIXEL = ("4", "9", "12", "30"), 4  # the time on two AVX2 cores
SHIFTS_PX = (0, 0.25, 0.5, 1, 2, 4, 8, 16)
SIGMAS = (0, 1, 2, 5, 10, 15, 25, 50, 100)
MARGIN_PX, SSIM_WINDOW_PX = max(SHIFTS_PX), 11
FIGURE_ROWS, DETAIL_PX = 2, 128
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)  # equal to itself alone, so that it can key a cache
class Shared:
    """What the parts work on, chosen and checked before any work.

    photos: uint8 (height, width, 3). sizes: (width, height) that the shift leaves of each to
    compare. square_px: the side of the dose-response's squares. Part 1.1 alone has neither weights
    nor references. about: what the provenance says of it all.
    """

    args: argparse.Namespace
    device: torch.device
    layers: list[str]
    photos: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    square_px: int
    weights: Weights | None
    references: References | None
    about: dict


# ------------------------------------------------------------------ 1.1 pixel losses under a shift


def part_1_1(shared: Shared) -> results.Findings:
    """Pixel losses under a shift."""
    shift_px, edge, rows, cells = shared.args.shift, shared.args.edge, {}, {}
    for photo, image in progress(shared.photos.items(), desc="photos"):
        a, b = translate(images.to_tensor(image), shift_px, edge)
        pictures = [images.to_uint8(a), images.to_uint8(b)]
        row = {"size": [image.shape[1], image.shape[0]], **pixel_losses(a, b)}
        row["l1_uint8"], row["l2_uint8"] = wrapped_uint8_losses(*pictures)
        rows[photo] = {**row, "psnr": psnr(row["l2"]), "ssim": ssim(a, b)}
        if len(cells) < FIGURE_ROWS:
            difference = (a - b).abs().mean(0).numpy() * 255
            cells[photo] = [*pictures, plotting.HeatMap(difference, "0-255, mean of RGB")]
    result = {
        "shift_px": shift_px,
        "edge": edge,
        "interpolation": "band-limited (Fourier)" if shift_px % 1 else "none, whole pixels",
        "images": rows,
        "wrapped_breaks_inequality": [
            photo for photo, row in rows.items() if row["l2_uint8"] < row["l1_uint8"] ** 2
        ],
    }
    title = f"Translation by {shift_px:g} px to the left, edge: {edge}"
    headers = ["original", "translated", "absolute difference"]
    figure = partial(plotting.image_grid, title=title, headers=headers, rows=cells)
    return results.Findings(
        result,
        {"1.1_pixel_losses.txt": problem1.shift_table(result)},
        figures={"1.1_shift.png": figure},
    )


def translate(image: Tensor, shift_px: float, edge: str) -> tuple[Tensor, Tensor]:
    """The image and its copy moved `shift_px` to the left, over the columns to be compared.

    Whole pixels are moved exactly; a fraction by band-limited (Fourier) interpolation. `edge`:
    "crop" keeps the columns that both have (width less ceil(shift_px)), "replicate" repeats the
    last column, "wrap" brings the first columns round.

    Raises:
        UserError: the shift is as wide as the image.
    """
    width = image.shape[-1]
    if shift_px >= width:
        raise UserError(f"--shift {shift_px:g}: the image is only {width} px wide")
    whole_px = int(shift_px)
    moved = _move_by_fraction(image, shift_px - whole_px, periodic=edge == "wrap")
    columns = torch.arange(width) + whole_px
    if edge == "wrap":
        columns %= width
    elif edge == "replicate":
        columns.clamp_(max=width - 1)
    else:
        columns = columns[: width - math.ceil(shift_px)]
    return image[..., : len(columns)], moved[..., columns]


def _move_by_fraction(image: Tensor, fraction_px: float, periodic: bool) -> Tensor:
    if fraction_px == 0:
        return image
    # A row and its mirror image join without a step, which would ring over the whole row.
    row = image if periodic else torch.cat([image, image.flip(-1)], dim=-1)
    frequencies = torch.fft.rfftfreq(row.shape[-1], dtype=torch.float64)
    phase = torch.polar(torch.ones_like(frequencies), 2 * math.pi * fraction_px * frequencies)
    moved = torch.fft.irfft(torch.fft.rfft(row.double()) * phase, n=row.shape[-1])
    return moved[..., : image.shape[-1]].clamp(0, 1).to(image.dtype)


# -------------------------------------------------- 1.2 VGG-16 and its feature losses, calibrated


def part_1_2(shared: Shared) -> results.Findings:
    """VGG-16, and its feature losses under the shift."""
    args, weights, side_px = shared.args, shared.weights, shared.args.summary_size
    table = summary.summary_table(summary.without_weights(vgg16), (3, side_px, side_px))
    result = {
        "weights": {"source": weights.source, "sha256": weights.sha256},
        "total_params": sum(parameters for _, _, parameters in table.rows),
        "summary_size_px": side_px,
        "layers": {name: LAYERS[name].number for name in shared.layers},
        **shared.references.used(shared.sizes),
        "losses": summarise(whole_photos(shared), "shift"),
    }
    tag = tag_of(shared, weights)
    losses_table = problem1.feature_table(result, args.shift, args.edge, tag)
    return results.Findings(
        result,
        tables={"1.2_vgg16_summary.txt": str(table), "1.2_feature_losses.txt": losses_table},
        figures={"1.2_feature_losses.png": problem1.feature_figure(result, args.shift, tag)},
    )


def tag_of(shared: Shared, weights: Weights) -> str:
    """What every table and figure of features says of its weights and photos."""
    return f"{weights.label}, {len(shared.photos)} photo(s)"


@lru_cache(maxsize=1)  # parts 1.2 and 1.3 read the same passes
def whole_photos(shared: Shared) -> dict[str, Calibrated]:
    """Calibrated losses of every photo, of the pairs that the parts asked for compare."""
    pairs = {}
    if "1.2" in shared.args.parts:
        pairs["shift"] = ("original", "translated")
    if "1.3" in shared.args.parts:
        pairs["noise"] = ("original", "noisy original")
        pairs["noise translated"] = ("translated", "noisy translated")
    network = build_network(shared, shared.weights)
    return calibrated_losses(
        network,
        shared.sizes,
        pairs,
        lambda photo: photo_copies(shared, photo)[0],
        shared.references,
    )


def build_network(shared: Shared, weights: Weights) -> VGG16Features:
    """VGG-16 with the taps, the precision and the device that the command line asks for."""
    dtype = PRECISIONS[shared.args.precision]
    return VGG16Features(weights, shared.layers, dtype).to(shared.device)


# ------------------------------------------- 1.3 robustness to noise, and the dose-response curves


def part_1_3(shared: Shared) -> results.Findings:
    """Robustness to noise, and the noise that equals a one-pixel shift."""
    args, tags = shared.args, {"weights": tag_of(shared, shared.weights)}
    losses, figure = noise_losses(shared)
    result = {"sigma": args.sigma, "noise_seeds": args.noise_seeds, **losses}
    result |= shared.references.used(shared.sizes)
    tables = {"1.3_noise.txt": problem1.noise_table(result, tags["weights"])}
    figures = {"1.3_noise.png": figure}
    if args.no_curves:
        shown = [loss for loss, row in result["losses"].items() if row["relative"] is not None]
        result |= {"shift_equivalent_sigma": dict.fromkeys(shown), "curves": None}
        return results.Findings(result, tables, figures=figures)
    curves, equal = {}, {}
    curves["weights"], equal["weights"] = dose_response(shared, shared.weights)
    if args.weights != "random":
        control = random_vgg16(args.seed, not args.no_lpips)
        tags["random_weights"] = tag_of(shared, control)
        curves["random_weights"], equal["random_weights"] = dose_response(shared, control)
    doses = {"shift_px": SHIFTS_PX, "sigma": SIGMAS, "crop_px": shared.square_px}
    result |= {
        "shift_equivalent_sigma": {loss: row["sigma"] for loss, row in equal["weights"].items()},
        "shift_equivalent_sigma_intervals": equal,
        "curves": {**doses, **curves},
    }
    dose_tables, dose_figures = problem1.dose_reports(result, tags)
    return results.Findings(result, tables | dose_tables, figures=figures | dose_figures)


def unit_noise(shape: torch.Size, *key: int) -> Tensor:
    """Standard normal noise that depends on `key` alone, e.g. (seed, photo, draw)."""
    return torch.randn(shape, generator=generator(*key))


def add_noise(image: Tensor, sigma: float, noise: Tensor) -> tuple[Tensor, float]:
    """The image plus noise of standard deviation `sigma` (0-255 units), clipped to [0, 1].

    Returns the noisy image and the share of values that were clipped.
    """
    noisy = image + noise * (sigma / 255)
    clipped = noisy.clamp(0, 1)
    return clipped, (noisy != clipped).float().mean().item()


def photo_copies(shared: Shared, photo: str) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The photo's four copies, and the share of clipped values of the noisy ones.

    Both noisy copies get the same noise, so that they differ in the picture alone.
    """
    copies, clipped = {}, {}
    image = images.to_tensor(shared.photos[photo])
    windows = translate(image, shared.args.shift, shared.args.edge)
    noise = unit_noise(windows[0].shape, shared.args.seed, list(shared.photos).index(photo), 0)
    # In this order no more than two maps of a large photo have to be held at a time.
    for name, window in zip(("original", "translated"), windows, strict=True):
        noisy, clipped[name] = add_noise(window, shared.args.sigma, noise)
        copies |= {name: window, f"noisy {name}": noisy}
    return copies, clipped


def noise_losses(shared: Shared) -> tuple[dict, partial]:
    """What noise costs the photo and its shifted copy, and the report's Figures 7 to 9.

    {"clipped_share", "losses", "losses_translated"}: the losses of `summarise`, and psnr and ssim,
    which are not calibrated.
    """
    cells, quality = {}, {"original": [], "translated": []}
    for photo in progress(shared.photos, desc="PSNR and SSIM"):
        copies, clipped = photo_copies(shared, photo)
        for name, rows in quality.items():
            a, b = copies[name], copies[f"noisy {name}"]
            rows.append([psnr(pixel_losses(a, b)["l2"]), ssim(a, b), clipped[name]])
        if len(cells) < FIGURE_ROWS:
            details = [images.centre_crop(copy, DETAIL_PX, DETAIL_PX) for copy in copies.values()]
            cells[photo] = [images.to_uint8(detail) for detail in details]
    losses, clipped, unknown = {}, {}, dict.fromkeys(("relative", "low", "high"))
    for name, pair in (("original", "noise"), ("translated", "noise translated")):
        psnr_db, mean_ssim, clipped[name] = np.mean(quality[name], axis=0).tolist()
        losses[name] = summarise(whole_photos(shared), pair)
        losses[name] |= {"psnr": {"raw": psnr_db, **unknown}, "ssim": {"raw": mean_ssim, **unknown}}
    title = f"Noise of sigma {shared.args.sigma:g} of 255, central {DETAIL_PX} px at most"
    headers = ["original", "noisy original", "translated", "noisy translated"]
    figure = partial(plotting.image_grid, title=title, headers=headers, rows=cells)
    result = {"losses": losses["original"], "losses_translated": losses["translated"]}
    return {"clipped_share": clipped, **result}, figure


def squares(shared: Shared) -> Shared:
    """The photos' central squares as what is compared, each with the margin that moves into it.

    References that are too small for such a square stay whole.
    """
    side_px, whole = shared.square_px, shared.references
    size = (side_px, side_px)

    def region(image: np.ndarray) -> np.ndarray:
        crop = images.centre_crop(images.to_tensor(image), side_px + MARGIN_PX, side_px)
        return images.to_uint8(crop)

    photos = {name: region(image) for name, image in shared.photos.items()}
    large = [name for name, image in whole.pictures.items() if square_side_px(image) >= side_px]
    pictures = whole.pictures | {name: region(whole.pictures[name]) for name in large}
    references = replace(whole, pictures=pictures, sizes=whole.sizes | dict.fromkeys(large, size))
    sizes = dict.fromkeys(photos, size)
    return replace(shared, photos=photos, sizes=sizes, references=references)


def square_side_px(image: np.ndarray) -> int:
    """The side of the largest square with a margin beside it that an image has."""
    return min(image.shape[1] - MARGIN_PX, image.shape[0])


def dose_copies(region: Tensor, noises: list[Tensor]) -> dict[str, Tensor]:
    """The left square of a (3, S, S + 16) region under all SHIFTS_PX, and SIGMAS of each noise.

    Keys: "original", "shift DOSE" and "noise DRAW DOSE". Real pixels move in from the region's
    margin, so that there is no border effect.
    """
    side_px = region.shape[1]
    copies = {"original": region[..., :side_px]}
    for shift_px in SHIFTS_PX[1:]:
        copies[f"shift {shift_px}"] = translate(region, shift_px, "crop")[1][..., :side_px]
    for draw, noise in enumerate(noises):
        for sigma in SIGMAS[1:]:
            copies[f"noise {draw} {sigma}"] = add_noise(copies["original"], sigma, noise)[0]
    return copies


def dose_response(shared: Shared, weights: Weights) -> tuple[dict, dict]:
    """The squares' calibrated losses under all doses, and the noise that equals the shift.

    {loss: {"shift" | "noise": {"relative", "low", "high"}}}, each a list, a number a dose, and
    {loss: {"sigma", "low", "high"}}.
    """
    regions, draws = squares(shared), range(shared.args.noise_seeds)
    shape = torch.Size([3, shared.square_px, shared.square_px])

    def make_copies(photo: str) -> dict[str, Tensor]:
        index = list(shared.photos).index(photo)
        noises = [unit_noise(shape, shared.args.seed, index, draw) for draw in draws]
        return dose_copies(images.to_tensor(regions.photos[photo]), noises)

    names = [f"shift {shift_px}" for shift_px in SHIFTS_PX[1:]]
    names += [f"noise {draw} {sigma}" for draw in draws for sigma in SIGMAS[1:]]
    pairs = {name: ("original", name) for name in names}
    network = build_network(shared, weights)
    calibrated = calibrated_losses(network, regions.sizes, pairs, make_copies, regions.references)

    def relative(loss: str, treatment: str, doses: tuple[float, ...]) -> np.ndarray:
        # Identical images have no loss, so that dose 0 went through no network.
        pairs = [f"{treatment} {dose}" for dose in doses[1:]]
        rows = [[0.0, *(row[pair][loss][1] for pair in pairs)] for row in calibrated.values()]
        return np.array(rows)

    curves, equal = {}, {}
    for loss in next(iter(calibrated.values()))[names[0]]:
        shift = relative(loss, "shift", SHIFTS_PX)[:, None]
        noise = np.stack([relative(loss, f"noise {draw}", SIGMAS) for draw in draws], axis=1)
        curves[loss] = {"shift": mean_curve(shift), "noise": mean_curve(noise)}
        equal[loss] = shift_equivalent_sigma(shift, noise)
    return curves, equal


def mean_curve(response: np.ndarray) -> dict[str, list[float]]:
    """{"relative", "low", "high"} of a response (photos, draws, doses): a number a dose each."""
    low, high = bootstrap_interval(response)
    curve = {"relative": response.mean(axis=(0, 1)), "low": low, "high": high}
    return {key: values.tolist() for key, values in curve.items()}


def equivalent_sigma(noise: np.ndarray, target: float) -> float:
    """The sigma at which a response over SIGMAS first reaches `target`; infinite if it never does.

    Between two doses a power law is assumed (a line in log-log), from 0 to the first a line.
    """
    reached = np.flatnonzero(noise >= target)
    if not len(reached):
        return math.inf
    k = reached[0]
    if k <= 1:
        return SIGMAS[k] * target / noise[k] if k else 0.0
    noise_log, sigmas_log = np.log(noise[k - 1 : k + 1]), np.log(SIGMAS[k - 1 : k + 1])
    return float(np.exp(np.interp(np.log(target), noise_log, sigmas_log)))


def shift_equivalent_sigma(shift: np.ndarray, noise: np.ndarray) -> dict[str, float]:
    """The noise that costs as much as a one-pixel shift: {"sigma", "low", "high"}.

    Of the mean curves of responses (photos, draws, doses). The 95 % interval resamples photos; NaN
    where there is one photo.
    """

    def equivalent(shift: np.ndarray, noise: np.ndarray) -> float:
        at_1_px = shift[..., SHIFTS_PX.index(1)].mean()
        return equivalent_sigma(noise.mean(axis=(0, 1)), at_1_px)

    low, high = bootstrap_nearest(equivalent, shift, noise)
    return {"sigma": equivalent(shift, noise), "low": low, "high": high}


# ---------------------------------------------------------------- before any work: choose and check


def prepare(args: argparse.Namespace) -> Shared:
    """Read the photos, and choose and check all that the parts asked for need.

    Raises:
        UserError: something is missing, or an image is too small for what is asked of it.
    """
    if job.size() > 1:
        raise UserError("this problem runs as one process; start it by python, not by torchrun")
    device = pick_device(args.device, threads=args.threads)
    layers = by_depth(map(layer_name, args.layers))
    photos, about = read_photos(args)
    sizes = {}
    for photo, image in photos.items():
        original, _ = translate(torch.zeros(1, image.shape[1]), args.shift, args.edge)
        sizes[photo] = (original.shape[1], image.shape[0])
    square_px = min(args.curve_size, *map(square_side_px, photos.values()))
    check_sizes(args, layers, sizes, square_px)
    weights = references = None
    if args.parts != ["1.1"]:
        weights = load_vgg16(args.weights, args.seed, want_lpips=not args.no_lpips)
        references = choose_references(args, photos, sizes)
    about["weights_source"] = weights.source if weights else "none used"
    precision = {"asked": args.precision, "chosen": args.precision, "why": "asked for"}
    about |= {"device": str(device), "precision": precision}
    return Shared(args, device, layers, photos, sizes, square_px, weights, references, about)


def read_photos(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict]:
    """Photos by name, and {"data", "left_out"}: whence, and why files were left out (said too)."""
    if args.image:
        photos = {args.image.name: images.load_image(args.image)}
        return photos, {"data": f"image {args.image.name}", "left_out": []}
    if not args.images:
        source = "embedded photos of scikit-image"
        return images.embedded_photos(), {"data": source, "left_out": []}
    photos, left_out = images.load_folder(args.images)
    images.say_left_out(left_out, str(args.images))
    return photos, {"data": f"folder {args.images}", "left_out": left_out}


def check_sizes(args: argparse.Namespace, layers: list[str], sizes: dict, square_px: int) -> None:
    """Refuse before any work what would fail in the middle of it."""
    needed_px, reason, hint = SSIM_WINDOW_PX, "SSIM's window", ""
    if args.parts != ["1.1"]:
        deepest = by_depth(layers if args.no_lpips else [*layers, *LPIPS_TAPS])[-1]
        needed_px, reason = LAYERS[deepest].receptive_field_px, f"{deepest}'s receptive field"
        hint = ", or shallower --layers with --no-lpips"
    for photo, (width, height) in sizes.items():
        if min(width, height) < needed_px:
            raise UserError(
                f"{photo}: only {width}x{height} px to compare, less than {reason} of"
                f" {needed_px} px; take a larger image{hint}"
            )
    if "1.3" in args.parts and not args.no_curves and square_px < needed_px:
        raise UserError(
            f"dose-response: squares of {square_px} px are less than {reason} of {needed_px} px;"
            " take a larger --curve-size, larger images, or --no-curves"
        )


def choose_references(
    args: argparse.Namespace, photos: dict[str, np.ndarray], sizes: dict[str, tuple[int, int]]
) -> References:
    """For each photo the pictures it is calibrated with: all that differ, or a seeded draw.

    Raises:
        UserError: a photo has no other picture.
    """
    pictures, are_photos = photos, False
    if args.reference:
        pictures = {str(path): images.load_image(path) for path in args.reference}
    elif len(photos) > 1:
        are_photos = True
    else:
        pictures = images.embedded_photos()
    rng, chosen = np.random.default_rng(args.seed), {}
    for photo, image in photos.items():
        names = [name for name in pictures if not np.array_equal(pictures[name], image)]
        if not names:
            raise UserError(f"{photo}: no other picture to calibrate with; name one: --reference")
        if len(names) > args.max_references:
            names = sorted(rng.choice(names, args.max_references, replace=False))
        chosen[photo] = names
    if not are_photos:
        sizes = {name: picture.shape[1::-1] for name, picture in pictures.items()}
    return References(pictures, sizes, chosen, are_photos)


# --------------------------------------------------------------------------------- the command line

PARTS = {"1.1": part_1_1, "1.2": part_1_2, "1.3": part_1_3}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add, source = parser.add, parser.add_mutually_exclusive_group()
    image_help = "one image (default: embedded photos)"
    images_help = "all images of a folder (default: embedded photos)"
    source.add_argument("--image", type=cli.path, metavar="FILE", help=image_help)
    source.add_argument("--images", type=cli.path, metavar="DIR", help=images_help)
    add("--shift", type=cli.non_negative, default=1.0, help="translation to the left in px")
    edges = ("crop", "replicate", "wrap")
    add("--edge", choices=edges, default="crop", help="what the border does")
    side_help = "input side of the VGG-16 table in px, 32 or more"
    add("--summary-size", type=cli.at_least(32, 4096), default=224, help=side_help)
    add("--layers", nargs="+", default=REPORT_LAYERS, help="layers, as 30 or relu5_3")
    add("--no-lpips", action="store_true", help="leave LPIPS out")
    reference_help = "unrelated pictures to calibrate with (default: the other photos)"
    add("--reference", type=cli.path, nargs="+", metavar="FILE", help=reference_help)
    add("--max-references", type=cli.positive, default=8, help="most unrelated pictures a photo")
    weights_help = "auto, random (a control) or a file of VGG-16 weights"
    add("--weights", type=cli.word_or_path, default="auto", help=weights_help)
    precision_help = "of the convolutions; bf16 is too coarse below sigma 2 and 1 px"
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help=precision_help)
    add("--sigma", type=cli.non_negative, default=25.0, help="noise of part 1.3 in 0-255 units")
    add("--noise-seeds", type=cli.at_least(1, 1000), default=3, help="draws of the dose-response")
    add("--curve-size", type=cli.positive, default=256, help="side of its squares in px, at most")
    add("--no-curves", action="store_true", help="leave the dose-response out of part 1.3")
    return parser


def forecast_seconds(part: str, shared: Shared) -> float:
    """About how long a part takes, by the pixels that go through VGG-16."""
    pixels = sum(width * height for width, height in shared.sizes.values())
    if part == "1.3":
        pixels = 2 * len(shared.sizes) * shared.square_px**2  # by two networks
    passes = {"1.1": 0.1, "1.2": 12, "1.3": 16 + shared.args.noise_seeds * len(SIGMAS)}
    return SECONDS_A_MEGAPIXEL * passes[part] * pixels / 1e6


def main() -> None:
    """Run the parts that the command line asks for."""
    args = make_parser().parse_args()
    folder = results.open_folder(args.out / "problem1", args.parts)
    shared = prepare(args)

    def publish(part: str, findings: results.Findings, seconds: float) -> None:
        provenance = results.provenance(args.seed, seconds, **shared.about)
        results.publish(folder, part, findings, provenance)

    cli.run_parts(PARTS, args.parts, shared, publish, forecast_seconds)
    html.write(args.out)


if __name__ == "__main__":
    sys.exit(guard(main))
