"""Problem 1: how do pixel and VGG-16 feature losses respond to a one-pixel shift and to noise?

Method: a photo is compared with its translated, noisy and distorted copies by l1, l2 and SSIM, by
the distance of VGG-16's feature maps, and by LPIPS. Every loss is calibrated: divided by the same
loss between unrelated pictures, so that 0 is "the same" and 1 is "another picture".

    python problem1_perceptual.py                      all parts, the embedded photos
    python problem1_perceptual.py 1.1 --image FILE     one part, an image of yours
    python problem1_perceptual.py --images DIR --max-images 60      a draw of a folder's images

Hardware: any CPU or GPU; on 2 CPU cores six photos take two minutes and 1.6 GiB, and each further
one four seconds and no more memory.
Finding (outputs/published/problem1, three sets of pictures): relu5_3 forgives the shift (0.02 of
"another picture", with random weights too) and sees noise, blur and JPEG of the same pixel loss at
least twelve times as much. It is robust only to large noise, which saturates it: noise of sigma 2
to 3 costs it as much as the shift.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH leaves it out
import common.start  # noqa: F401 it handles Ctrl-C while the others load

# isort: split
import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torchvision.models import vgg16

from common import cli, job
from common.data import images
from common.errors import UserError, guard
from common.job import printable, progress
from common.networks import summary
from common.networks.distortions import add_noise, translate, unit_noise
from common.networks.losses import Calibrated, pixel_losses, psnr, ssim, wrapped_uint8_losses
from common.networks.vgg import LAYERS, LPIPS_TAPS, VGG16Features, by_depth, layer_name, pools_of
from common.networks.weights import Weights, load_vgg16, random_vgg16
from common.reporting import plotting, problem1, results
from common.reporting.parts import run_parts
from common.studies import perceptual, perceptual_controls
from common.studies.perceptual import CONTROL, MARGIN_PX, TRAINED, Doses, Squares, Treatment, moved
from common.studies.perceptual_controls import averaged
from common.training.parallel import pick_device

REPORT_LAYERS = ("4", "9", "10", "12", "30")  # the report's layers, and a pool between two of them
SECONDS_A_MEGAPIXEL = 6  # through VGG-16 on two AVX2 cores
SSIM_WINDOW_PX = 11
SUMMARY_SIDE_PX = 224  # of the VGG-16 table
DRAWS = 5  # of random weights, as a control
FIGURE_ROWS, DETAIL_PX, STRIP_PX = 2, 128, 176
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Shared:
    """What the parts work on, chosen and checked before any work.

    photos: uint8 (height, width, 3) by name, read on access. sizes: their (width, height). squares:
    the squares of the photos that parts 1.2 and 1.3 compare. weights: None if only part 1.1 runs.
    about: what the results record about the inputs.
    """

    args: argparse.Namespace
    device: torch.device
    layers: list[str]
    photos: Mapping[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    squares: Squares
    weights: Weights | None
    about: dict

    @cached_property
    def measured(self) -> Calibrated:
        """Calibrated losses of all photos, from passes that parts 1.2 and 1.3 share."""
        return measure(self, self.weights, list(self.photos), TRAINED)

    @cached_property
    def controls(self) -> list[Calibrated]:
        """Calibrated losses of a few photos in networks with random weights, one per draw."""
        args, names = self.args, list(control_sides(self))
        if args.weights == "random" or len(names) < 2:
            return []
        draws = [random_vgg16(args.seed + draw, not args.no_lpips) for draw in range(DRAWS)]
        return [measure(self, weights, names, CONTROL) for weights in draws]


def control_sides(shared: Shared, least_px: int = 0) -> dict[str, int]:
    """The first photos, on which controls are measured, and the side of each one's largest square.

    Only photos in which a square of `least_px` or more fits with its margin.
    """
    margin_px, sizes = shared.squares.margin_px, shared.sizes.items()
    sides = {name: min(width - margin_px, height) for name, (width, height) in sizes}
    large = [(name, side_px) for name, side_px in sides.items() if side_px >= least_px]
    return dict(large[: shared.args.control_images])


# ------------------------------------------------------------------ 1.1 pixel losses under a shift


def part_1_1(shared: Shared) -> results.Findings:
    """Pixel losses under a shift."""
    shift_px, edge, rows, cells = shared.args.shift, shared.args.edge, {}, {}
    for photo in progress(shared.photos, desc="photos"):
        image = shared.photos[photo]
        a, b = translate(images.to_tensor(image), shift_px, edge)
        pictures = [images.to_uint8(a), images.to_uint8(b)]
        row = {**pixel_losses(a, b), **wrapped_uint8_losses(*pictures)}
        row |= {"psnr": psnr(row["l2"]), "ssim": ssim(a, b)}
        rows[photo] = {"size": [image.shape[1], image.shape[0]], **row}
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
    tables = {"1.1_pixel_losses.txt": problem1.shift_table(result)}
    return results.Findings(result, tables, figures={"1.1_shift.png": figure})


# -------------------------------------------------- 1.2 VGG-16 and its feature losses, calibrated


def part_1_2(shared: Shared) -> results.Findings:
    """VGG-16, and its feature losses under the shift."""
    args, weights, network = shared.args, shared.weights, summary.without_weights(vgg16)
    table = summary.summary_table(network, (3, SUMMARY_SIDE_PX, SUMMARY_SIDE_PX))
    losses = shared.measured.rows("shift")
    result = {
        "weights": {"source": weights.source, "sha256": weights.sha256},
        "total_params": sum(parameters for _, _, parameters in table.rows),
        "summary_size_px": SUMMARY_SIDE_PX,
        "layers": {name: LAYERS[name].number for name in shared.layers},
        **used_references(shared),
        "losses": losses,
        "pools": {
            pool: {"before": before, "after": after,
                   "losses": {name: losses[name] for name in (before, pool, after)}}
            for pool, (before, after) in pools_of(shared.layers).items()
        },
        "random_weights": control_rows(shared, "shift"),
        **other_controls(shared),
    }  # fmt: skip
    tables, figures = problem1.feature_reports(result, args.shift, args.edge, tags_of(shared))
    tables = {"1.2_vgg16_summary.txt": str(table), **tables}
    return results.Findings(result, tables, figures=figures)


def control_rows(shared: Shared, pair: str) -> dict | None:
    """A pair's losses with random weights, averaged over draws; None without draws."""
    return averaged([draw.rows(pair) for draw in shared.controls]) if shared.controls else None


def other_controls(shared: Shared) -> dict:
    """{"borders", "half_pixel", "report_scale"}, each None if it cannot be measured."""
    args, squares, weights = shared.args, shared.squares, shared.weights
    found = dict.fromkeys(("borders", "half_pixel", "report_scale"))
    if args.control_images < 2:
        return found
    network = build_network(shared, weights)
    if len(sides := control_sides(shared, squares.side_px + 1)) > 1:
        most_px = min(sides.values())
        found["borders"] = perceptual_controls.borders(
            squares, network, list(sides), most_px, args.sigma
        )
    if len(sides := control_sides(shared, 2 * squares.side_px)) > 1:
        found["half_pixel"] = perceptual_controls.fractions(squares, network, list(sides))
    if set(perceptual_controls.REPORT) <= set(shared.layers):
        pictures = {name: shared.photos[name] for name in control_sides(shared)}
        found["report_scale"] = perceptual_controls.report_scale(
            pictures, weights, args.sigma, args.seed, shared.device
        )
    return found


def tags_of(shared: Shared) -> dict[str, str]:
    """The weights and photos as tables and figures of features name them."""
    tags = {"weights": printable(f"{shared.weights.label}, {len(shared.photos)} photo(s)")}
    if shared.controls:
        photos = len(control_sides(shared))
        tags["random_weights"] = f"random weights, {len(shared.controls)} draws, {photos} photos"
    return tags


def build_network(shared: Shared, weights: Weights) -> VGG16Features:
    """VGG-16 with the taps, the precision and the device that the command line asks for."""
    dtype = PRECISIONS[shared.args.precision]
    return VGG16Features(weights, shared.layers, dtype).to(shared.device)


def measure(shared: Shared, weights: Weights, names: list[str], doses: Doses) -> Calibrated:
    """Calibrated losses of photos' squares, for the pairs that the requested parts compare."""
    args = shared.args
    draws = args.noise_seeds if doses is TRAINED else 1
    wanted = doses if "1.3" in args.parts else None
    treatment = Treatment(args.shift, args.edge, args.sigma, args.seed, draws, wanted)
    index = {name: place for place, name in enumerate(shared.photos)}
    return perceptual.calibrate(
        shared.squares,
        build_network(shared, weights),
        lambda name: treatment.copies(shared.squares.region(name), index[name]),
        names,
        weights.label,
    )


# ------------------------------------------- 1.3 robustness to noise, and the dose-response curves


def part_1_3(shared: Shared) -> results.Findings:
    """Robustness to noise, and the noise that equals a one-pixel shift."""
    losses, figure = noise_losses(shared)
    result = {"sigma": shared.args.sigma, "noise_seeds": shared.args.noise_seeds, **losses}
    result |= used_references(shared)
    result["random_weights"] = control_rows(shared, "noise")
    result |= dose_response(shared)
    tables, figures = problem1.dose_reports(result, tags_of(shared))
    figures["1.3_noise.png"] = figure
    figures["1.3_doses.jpg"] = partial(problem1.dose_strip, pictures=first_under_doses(shared))
    return results.Findings(result, tables, figures=figures)


def dose_response(shared: Shared) -> dict:
    """The results on doses and distortions, for trained and for random weights."""
    measured, controls = shared.measured, shared.controls
    curves = {"shift_px": TRAINED.shifts_px, "sigma": TRAINED.sigmas}
    curves |= {"crop_px": shared.squares.side_px, "weights": perceptual.curves(measured, TRAINED)}
    equal = {"weights": perceptual.shift_equivalents(measured, TRAINED)}
    ranked = {"weights": perceptual.distortion_ranking(measured)}
    if controls:
        curves |= {"random_shift_px": CONTROL.shifts_px, "random_sigma": CONTROL.sigmas}
        curves["random_weights"] = averaged([perceptual.curves(c, CONTROL) for c in controls])
        draws = [perceptual.shift_equivalents(draw, CONTROL) for draw in controls]
        equal["random_weights"] = averaged(draws)
        ranked["random_weights"] = averaged(list(map(perceptual.distortion_ranking, controls)))
    return {
        "shift_equivalent_sigma_intervals": equal,
        "curves": curves,
        "order_turns": perceptual.order_turns(measured, TRAINED),
        "slopes": perceptual.slopes(measured, TRAINED),
        "distortions": ranked,
    }


def first_under_doses(shared: Shared) -> list[np.ndarray]:
    """The centre of the first photo's square: unchanged, under each shift, and each noise."""
    region = shared.squares.region(next(iter(shared.photos)))
    square = region[..., : shared.squares.side_px]
    noise = unit_noise(square.shape, shared.args.seed, 0, 0)
    shifted = [moved(region, px) for px in TRAINED.shifts_px[1:]]
    noisy = [add_noise(square, sigma, noise)[0] for sigma in TRAINED.sigmas[1:]]
    centres = [images.centre_crop(c, STRIP_PX, STRIP_PX) for c in (square, *shifted, *noisy)]
    return [images.to_uint8(centre) for centre in centres]


def noise_losses(shared: Shared) -> tuple[dict, partial]:
    """Losses of the photos and their shifted copies under noise, and the report's Figures 7 to 9.

    {"clipped_share", "wrapped", "losses", "losses_translated"}: losses are as in `Calibrated.rows`,
    with psnr and ssim added, which are not calibrated.
    """
    args, measured, cells, quality, wrapped = shared.args, shared.measured, {}, [], []
    for index, photo in enumerate(progress(shared.photos, desc="PSNR and SSIM")):
        region = shared.squares.region(photo)
        square = region[..., : shared.squares.side_px]
        noise, rows, copies = unit_noise(square.shape, args.seed, index, 0), [], []
        for copy in (square, moved(region, args.shift, args.edge)):
            noisy, clipped = add_noise(copy, args.sigma, noise)
            rows.append([psnr(pixel_losses(copy, noisy)["l2"]), ssim(copy, noisy), clipped])
            copies += [copy, noisy]
        quality.append(rows)
        wrapped.append(perceptual_controls.wrapped_noise(square, noise, args.sigma))
        if len(cells) < FIGURE_ROWS:
            details = [images.centre_crop(copy, DETAIL_PX, DETAIL_PX) for copy in copies]
            cells[photo] = [images.to_uint8(detail) for detail in details]
    result = {"clipped_share": {}, "wrapped": averaged(wrapped)}
    unknown = dict.fromkeys(("relative", "low", "high"))
    pairs = {
        "original": ("losses", "noise"),
        "translated": ("losses_translated", "noise translated"),
    }
    for (name, (key, pair)), means in zip(pairs.items(), np.mean(quality, axis=0), strict=True):
        decibels, similarity, result["clipped_share"][name] = means.tolist()
        others = {"psnr": {"raw": decibels, **unknown}, "ssim": {"raw": similarity, **unknown}}
        result[key] = measured.rows(pair) | others
    title = f"Noise of sigma {args.sigma:g} of 255, central {DETAIL_PX} px at most"
    headers = ["original", "noisy original", "translated", "noisy translated"]
    return result, partial(plotting.image_grid, title=title, headers=headers, rows=cells)


# ---------------------------------------------------------------- before any work: choose and check


def prepare(args: argparse.Namespace) -> Shared:
    """Read the photos; choose and check everything that the requested parts need.

    Raises:
        UserError: something is missing, or an image is too small for what is asked of it.
    """
    if job.size() > 1:
        raise UserError("this problem runs as one process; start it with python, not torchrun")
    device = pick_device(args.device, threads=args.threads)
    layers = by_depth(map(layer_name, args.layers))
    photos, sizes, about = read_photos(args)
    margin_px = max(MARGIN_PX, int(np.ceil(args.shift)))
    side_px = min([args.curve_size, *(min(w - margin_px, h) for w, h in sizes.values())])
    check_sizes(args, layers, sizes, side_px, margin_px)
    weights = references = None
    if args.parts != ["1.1"]:
        weights = load_vgg16(args.weights, args.seed, want_lpips=not args.no_lpips)
        references = choose_references(args, photos)
    squares = Squares(photos, side_px, margin_px, args.seed, args.max_references + 1, references)
    precision = {"asked": args.precision, "chosen": args.precision, "why": "asked for"}
    about |= {"weights_source": weights.source if weights else "none used"}
    about |= {"device": str(device), "precision": precision}
    return Shared(args, device, layers, photos, sizes, squares, weights, about)


def read_photos(args: argparse.Namespace) -> tuple[Mapping[str, np.ndarray], dict, dict]:
    """Photos by name, their sizes, and {"data", "left_out"}: their source, and files left out."""
    if args.images:
        photos, sizes, left_out = images.open_folder(args.images, args.max_images, args.seed)
        images.say_left_out(left_out, str(args.images))
        return photos, sizes, {"data": f"folder {args.images}", "left_out": left_out}
    photos, data = images.embedded_photos(), "embedded photos of scikit-image"
    if args.image:
        photos, data = {args.image.name: images.load_image(args.image)}, f"image {args.image.name}"
    sizes = {name: photo.shape[1::-1] for name, photo in photos.items()}
    return photos, sizes, {"data": data, "left_out": []}


def check_sizes(
    args: argparse.Namespace, layers: list[str], sizes: dict, side_px: int, margin_px: int
) -> None:
    """Refuse images that are too small for the requested parts, before any work."""
    for photo, (width, height) in sizes.items():
        left = min(width - int(np.ceil(args.shift)), height)
        if left < SSIM_WINDOW_PX:
            raise UserError(
                f"{photo}: {width}x{height} px, of which the shift leaves {left} px, fewer than"
                f" SSIM's window of {SSIM_WINDOW_PX} px; give a larger image or a smaller --shift"
            )
    if args.parts == ["1.1"]:
        return
    deepest = by_depth(layers if args.no_lpips else [*layers, *LPIPS_TAPS])[-1]
    needed_px = max(SSIM_WINDOW_PX, LAYERS[deepest].receptive_field_px)
    if side_px < needed_px:
        smallest = min(sizes, key=lambda name: min(sizes[name][0] - margin_px, sizes[name][1]))
        width, height = sizes[smallest]
        raise UserError(
            f"squares of {side_px} px (the smallest image is {smallest}, {width}x{height}) are"
            f" smaller than the {needed_px} px that {deepest} or SSIM looks at; give a larger"
            " --curve-size, larger images, or shallower --layers with --no-lpips"
        )


def choose_references(args: argparse.Namespace, photos: Mapping) -> Mapping[str, np.ndarray] | None:
    """Unrelated pictures from elsewhere, drawn by the seed if many; None: the photos serve."""
    if args.reference:
        pictures = {str(path): images.load_image(path) for path in args.reference}
    elif len(photos) > 1:
        return None
    else:
        pictures = images.embedded_photos()
    names = list(pictures)
    if len(names) > args.max_references:
        rng = np.random.default_rng(args.seed)
        names = sorted(rng.choice(names, args.max_references, replace=False))
    return {name: pictures[name] for name in names}


def used_references(shared: Shared) -> dict:
    """The pictures calibrated with: {"references": names, "references_resized": {name: "WxH"}}."""
    squares = shared.squares
    if squares.references is None:
        return {"references": list(shared.photos), "references_resized": {}}
    sizes = {name: picture.shape[1::-1] for name, picture in squares.references.items()}
    resized = {name: f"{w}x{h}" for name, (w, h) in sizes.items() if min(w, h) < squares.side_px}
    return {"references": sorted(sizes), "references_resized": resized}


# --------------------------------------------------------------------------------- the command line

PARTS = {"1.1": part_1_1, "1.2": part_1_2, "1.3": part_1_3}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add, source = parser.add, parser.add_mutually_exclusive_group()
    embedded = "(default: embedded photos)"
    source.add_argument("--image", type=cli.path, metavar="FILE", help=f"one image file {embedded}")
    folder = f"folder of images, or of folders of images {embedded}"
    source.add_argument("--images", type=cli.path, metavar="DIR", help=folder)
    most = "draw at most this many of --images, by the seed (default: all)"
    add("--max-images", type=cli.positive, help=most)
    add("--shift", type=cli.non_negative, default=1.0, help="translation to the left in px")
    edges, edge = ("crop", "replicate", "wrap"), "what to do at the edge of the shifted copy"
    add("--edge", choices=edges, default="crop", help=edge)
    layers = "VGG-16 layers by number or name, such as 30, relu5_3 or pool2"
    add("--layers", nargs="+", default=REPORT_LAYERS, help=layers)
    add("--no-lpips", action="store_true", help="leave out LPIPS")
    reference = "unrelated pictures for the calibration (default: the other photos)"
    add("--reference", type=cli.path, nargs="+", metavar="FILE", help=reference)
    references = "about how many unrelated pictures to compare each photo with"
    add("--max-references", type=cli.positive, default=8, help=references)
    weights = "VGG-16 weights: auto, random (a control) or a file"
    add("--weights", type=cli.word_or_path, default="auto", help=weights)
    controls = "photos for the controls, such as random weights; below 2: no controls"
    add("--control-images", type=cli.whole, default=2, help=controls)
    precision = "precision of the convolutions; bf16 is too coarse below sigma 2 and 1 px"
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help=precision)
    sigma = "standard deviation of the noise, in 0-255 units"
    add("--sigma", type=cli.non_negative, default=25.0, help=sigma)
    draws = "noise draws per dose in part 1.3, without its controls"
    add("--noise-seeds", type=cli.at_least(1, 1000), default=1, help=draws)
    side = "largest side in px of the squares that parts 1.2 and 1.3 compare"
    add("--curve-size", type=cli.positive, default=256, help=side)
    return parser


def forecast_seconds(part: str, shared: Shared) -> float:
    """Estimated seconds of a part, by the pixels that go through VGG-16."""
    args, photos = shared.args, len(shared.photos)
    if part == "1.1":
        return SECONDS_A_MEGAPIXEL * 0.1 * sum(w * h for w, h in shared.sizes.values()) / 1e6
    if part == "1.3" and "1.2" in args.parts:
        return 5  # 1.2 has taken the passes of both
    has_noise, controls = "1.3" in args.parts, min(args.control_images, photos)
    copies = len(TRAINED.shifts) + args.noise_seeds * len(TRAINED.noises) + 8 if has_noise else 2
    passes = copies * photos + ((13 if has_noise else 2) * DRAWS + 40) * controls
    return SECONDS_A_MEGAPIXEL * passes * shared.squares.side_px**2 / 1e6


def main() -> None:
    """Run the parts that the command line asks for."""
    args = make_parser().parse_args()
    folder = results.open_folder(args.out / "problem1", args.parts)
    shared = prepare(args)
    run_parts(PARTS, args, folder, shared, forecast_seconds, lambda: shared.about)


if __name__ == "__main__":
    sys.exit(guard(main))
