"""Problem 1: how do pixel and VGG-16 feature losses respond to a one-pixel shift and to noise?

Method: a photo is compared with its translated and its noisy copy by l1, l2, PSNR and SSIM, by
the distance of VGG-16's feature maps, and by LPIPS. Every loss is calibrated: divided by the same
loss between unrelated pictures, so that 0 is "the same" and 1 is "another picture".

    python problem1_perceptual.py                      all parts, the embedded photos
    python problem1_perceptual.py 1.1 --image FILE     one part, an image of yours

Hardware: any CPU or GPU; on 2 CPU cores all parts take about four minutes and 2 GiB.
Finding (numbers: README, outputs/published/problem1): of the report's four layers relu5_3 takes
the shift and noise of sigma 25 best, as the report has it. Robust it is not: that noise costs it
six times what it costs l2, and noise of sigma 2 as much as the one-pixel shift.
"""

import argparse
import math
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchvision.models import vgg16
from tqdm import tqdm

from common import cli, data, plotting, summary
from common.cli import UserError
from common.statistics import bootstrap_interval
from common.vgg import LAYERS, LPIPS_TAPS, VGG16Features, by_depth, layer_name, lock_step
from common.weights import Weights, load_vgg16, random_vgg16

REPORT_LAYERS = ("4", "9", "12", "30")
SHIFTS_PX = (0, 0.25, 0.5, 1, 2, 4, 8, 16)
MARGIN_PX = max(SHIFTS_PX)
SIGMAS = (0, 1, 2, 5, 10, 15, 25, 50, 100)
SSIM_WINDOW_PX = 11
FIGURE_ROWS = 2
DETAIL_PX = 128
LOCK_STEP_PIXELS = 2_000_000  # photos of one size whose maps may be alive together

Losses = dict[str, float]


# ------------------------------------------------------------------ pixel losses, shift and noise










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


def unit_noise(shape: torch.Size, *key: int) -> Tensor:
    """Standard normal noise that depends on `key` alone, e.g. (seed, photo, draw)."""
    state = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    return torch.randn(shape, generator=torch.Generator().manual_seed(state))


def add_noise(image: Tensor, sigma: float, noise: Tensor) -> tuple[Tensor, float]:
    """The image plus noise of standard deviation `sigma` (0-255 units), clipped to [0, 1].

    Returns the noisy image and the share of values that were clipped.
    """
    noisy = image + noise * (sigma / 255)
    clipped = noisy.clamp(0, 1)
    return clipped, (noisy != clipped).float().mean().item()


# --------------------------------------------------------------------------------- feature losses










# ------------------------------------------------------------------------------------ calibration


@dataclass(frozen=True)
class Trial:
    """Copies of one photo ("original" among them) and the pairs of them to be compared."""

    images: dict[str, Tensor]
    pairs: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Measurement:
    """Losses of one photo's pairs: raw, and relative to its mean loss to unrelated pictures."""

    raw: dict[str, Losses]
    relative: dict[str, Losses]


def calibrate(raw: dict[str, Losses], unrelated: list[Losses]) -> Measurement:
    """Divide every loss by its mean over `unrelated`: 0 is "the same", 1 "another picture".

    Raises:
        UserError: a loss is 0 or not a number between unrelated pictures.
    """
    yardstick = {loss: np.mean([one[loss] for one in unrelated]) for loss in unrelated[0]}
    for loss, value in yardstick.items():
        if not value > 0:
            raise UserError(
                f"{loss} is {value:g} between unrelated pictures, so nothing can be calibrated with"
                " it; give other --reference pictures or other --weights"
            )
    relative = {
        pair: {loss: float(value / yardstick[loss]) for loss, value in losses.items()}
        for pair, losses in raw.items()
    }
    return Measurement(raw, relative)


def measure(
    network: VGG16Features,
    sizes: dict[str, tuple[int, int]],
    make_trial: Callable[[str], Trial],
    others: dict[str, list[str]],
    make_picture: Callable[[str, tuple[int, int]], Tensor],
    caption: str,
    others_are_photos: bool,
) -> dict[str, Measurement]:
    """Calibrated losses of every photo's trial, the yardstick being `others[photo]`.

    `sizes` gives each photo's (width, height) as compared; `make_picture` cuts another picture to
    such a size. Photos of one size go through the network together, where memory allows, so that,
    if `others_are_photos`, the original of one is the other picture of the next without a pass of
    its own. (A reference may have a photo's name and yet be another picture.)
    """
    found = {}
    for group in _same_size_groups(sizes):
        trials = {photo: make_trial(photo) for photo in group}
        images = {(photo, "original"): trials[photo].images["original"] for photo in group}
        pairs = {}
        for photo in group:
            for other in others[photo]:
                shared = others_are_photos and other in group
                key = (other, "original" if shared else "unrelated")
                if key not in images:
                    images[key] = make_picture(other, sizes[photo])
                pairs[photo, "unrelated", other] = ((photo, "original"), key)
        for photo, trial in trials.items():
            images |= {(photo, name): image for name, image in trial.images.items()}
            pairs |= {
                (photo, name): ((photo, a), (photo, b)) for name, (a, b) in trial.pairs.items()
            }
        steps = len(images) * len(network.taps)
        with tqdm(total=steps, desc=f"{caption} ({', '.join(group)})", disable=None) as bar:
            losses = compare(network, images, pairs, bar.update)
        for photo, trial in trials.items():
            unrelated = [losses[photo, "unrelated", other] for other in others[photo]]
            found[photo] = calibrate({name: losses[photo, name] for name in trial.pairs}, unrelated)
    return {photo: found[photo] for photo in sizes}


def _same_size_groups(sizes: dict[str, tuple[int, int]]) -> Iterator[list[str]]:
    by_size: dict[tuple[int, int], list[str]] = {}
    for photo, size in sizes.items():
        by_size.setdefault(size, []).append(photo)
    for (width, height), photos in by_size.items():
        length = max(1, LOCK_STEP_PIXELS // (width * height))
        for start in range(0, len(photos), length):
            yield photos[start : start + length]


def summarise(measured: dict[str, Measurement], pair: str) -> dict[str, dict]:
    """{loss: {raw, relative, low, high}} of one pair: means over photos and the 95 % interval."""
    rows = {}
    for loss in next(iter(measured.values())).raw[pair]:
        relative = np.array([one.relative[pair][loss] for one in measured.values()])
        low, high = bootstrap_interval(relative[:, None])
        raw = np.mean([one.raw[pair][loss] for one in measured.values()])
        rows[loss] = {"raw": raw, "relative": relative.mean(), "low": low, "high": high}
    return rows


# ---------------------------------------------------------------------------------- dose-response


@dataclass(frozen=True)
class Response:
    """One calibrated loss: (photos, 1, shifts) and (photos, noise draws, sigmas)."""

    shift: np.ndarray
    noise: np.ndarray


def dose_trial(region: Tensor, noises: list[Tensor]) -> Trial:
    """The left square of a (3, S, S + 16) region under all SHIFTS_PX, and SIGMAS of each noise.

    Real pixels move in from the region's margin, so that there is no border effect.
    """
    side = region.shape[1]
    images = {"original": region[..., :side]}
    for shift_px in SHIFTS_PX[1:]:
        images[f"shift {shift_px}"] = translate(region, shift_px, "crop")[1][..., :side]
    for draw, noise in enumerate(noises):
        for sigma in SIGMAS[1:]:
            images[f"noise {draw} {sigma}"] = add_noise(images["original"], sigma, noise)[0]
    return Trial(images, {name: ("original", name) for name in images if name != "original"})


def responses(measured: dict[str, Measurement], draws: int) -> dict[str, Response]:
    """Every loss's response in measurements of `dose_trial`."""

    def gather(loss: str, prefix: str, doses: tuple) -> list[list[float]]:
        # Identical images have no loss, so that dose 0 went through no network.
        return [
            [one.relative[f"{prefix} {dose}"][loss] if dose else 0.0 for dose in doses]
            for one in measured.values()
        ]

    found = {}
    for loss in next(iter(next(iter(measured.values())).relative.values())):
        shift = np.array(gather(loss, "shift", SHIFTS_PX))[:, None]
        noise = [gather(loss, f"noise {draw}", SIGMAS) for draw in range(draws)]
        found[loss] = Response(shift, np.stack(noise, axis=1))
    return found


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
    responses_log, sigmas_log = np.log(noise[k - 1 : k + 1]), np.log(SIGMAS[k - 1 : k + 1])
    return float(np.exp(np.interp(np.log(target), responses_log, sigmas_log)))


def shift_equivalent_sigma(response: Response) -> dict[str, float]:
    """{sigma, low, high}: the noise that costs as much as a one-pixel shift, on the mean curves.

    The 95 % interval resamples photos; NaN with one photo.
    """
    shift = response.shift[:, 0, SHIFTS_PX.index(1)]
    noise = response.noise.mean(axis=1)
    found = {
        "sigma": equivalent_sigma(noise.mean(0), shift.mean()),
        "low": math.nan,
        "high": math.nan,
    }
    if len(shift) > 1:
        rng = np.random.default_rng(0)
        draws = rng.integers(len(shift), size=(1000, len(shift)))
        sigmas = [equivalent_sigma(noise[draw].mean(0), shift[draw].mean()) for draw in draws]
        # "nearest": infinities can't be interpolated.
        found["low"], found["high"] = np.percentile(sigmas, [2.5, 97.5], method="nearest")
    return found


# ----------------------------------------------------------------------- photos, network, measuring


def read_photos(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], list[str]]:
    """Photos by name, and the reasons for which files were left out (said on stderr too)."""
    if args.image:
        return {args.image.name: data.load_image(args.image)}, []
    if not args.images:
        return data.embedded_photos(), []
    photos, left_out = data.load_folder(args.images)
    for reason in left_out:
        print(f"left out: {reason}", file=sys.stderr)
    if left_out:
        total = len(photos) + len(left_out)
        print(f"left out {len(left_out)} of {total} images in {args.images}", file=sys.stderr)
    return photos, left_out


class Experiment:
    """The photos and the network, and the measurements that parts 1.2 and 1.3 share."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.device = cli.pick_device(args.device)
        self.layers = by_depth(map(layer_name, args.layers))
        self.photos, self.left_out = read_photos(args)
        self.resized: dict[str, str] = {}
        self.sizes = {photo: self.compared_size(photo) for photo in self.photos}
        sides = [
            min(w - MARGIN_PX, h) for h, w, _ in (image.shape for image in self.photos.values())
        ]
        self.curve_px = min(args.curve_size, *sides)
        self.check_sizes()
        if self.uses_features:  # what can't be had is said before any work
            self.weights, self.others  # noqa: B018

    def compared_size(self, photo: str) -> tuple[int, int]:
        """(width, height) that is left to compare after the shift."""
        height, width = self.photos[photo].shape[:2]
        original, _ = translate(torch.zeros(1, width), self.args.shift, self.args.edge)
        return original.shape[1], height

    @property
    def uses_features(self) -> bool:
        """Whether a part that needs the network was asked for."""
        return bool({"1.2", "1.3"} & set(self.args.parts))

    def check_sizes(self) -> None:
        """Refuse before any work what would fail in the middle of it."""
        needed, reason = SSIM_WINDOW_PX, "SSIM's window"
        if self.uses_features:
            deepest = by_depth([*self.layers, *(() if self.args.no_lpips else LPIPS_TAPS)])[-1]
            needed, reason = LAYERS[deepest].receptive_field_px, f"{deepest}'s receptive field"
        for photo, (width, height) in self.sizes.items():
            if min(width, height) < needed:
                hint = ", or shallower --layers with --no-lpips" if self.uses_features else ""
                raise UserError(
                    f"{photo}: only {width}x{height} px to compare, less than {reason} of"
                    f" {needed} px; take a larger image{hint}"
                )
        if "1.3" in self.args.parts and not self.args.no_curves and self.curve_px < needed:
            raise UserError(
                f"dose-response: squares of {self.curve_px} px are less than {reason} of"
                f" {needed} px; take a larger --curve-size, larger images, or --no-curves"
            )

    @cached_property
    def pictures(self) -> dict[str, np.ndarray]:
        """The unrelated pictures that losses are calibrated with."""
        if self.args.reference:
            return {str(path): data.load_image(path) for path in self.args.reference}
        return self.photos if len(self.photos) > 1 else data.embedded_photos()

    @cached_property
    def others(self) -> dict[str, list[str]]:
        """For each photo the pictures it is calibrated with: all others, or a seeded draw."""
        rng, chosen = np.random.default_rng(self.args.seed), {}
        for photo, image in self.photos.items():
            names = [name for name, one in self.pictures.items() if not np.array_equal(one, image)]
            if not names:
                raise UserError(
                    f"{photo}: no other picture to calibrate with; name one: --reference"
                )
            if len(names) > self.args.max_references:
                names = sorted(rng.choice(names, self.args.max_references, replace=False))
            chosen[photo] = names
        return chosen

    @cached_property
    def weights(self) -> Weights:
        return load_vgg16(self.args.weights, self.args.seed, want_lpips=not self.args.no_lpips)

    @cached_property
    def network(self) -> VGG16Features:
        return self.network_with(self.weights)

    def network_with(self, weights: Weights) -> VGG16Features:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.args.precision]
        return VGG16Features(weights, self.layers, dtype).to(self.device)

    def noise(self, photo: str, shape: torch.Size, draw: int) -> Tensor:
        return unit_noise(shape, self.args.seed, list(self.photos).index(photo), draw)

    def copies(self, photo: str) -> tuple[dict[str, Tensor], dict[str, float]]:
        """The photo's four copies, and the share of clipped values of the noisy ones.

        Both noisy copies get the same noise, so that they differ in the picture alone.
        """
        images, clipped = {}, {}
        image = data.to_tensor(self.photos[photo])
        windows = translate(image, self.args.shift, self.args.edge)
        noise = self.noise(photo, windows[0].shape, 0)
        # In this order no more than two maps of a large photo have to be held at a time.
        for name, window in zip(("original", "translated"), windows, strict=True):
            noisy, clipped[name] = add_noise(window, self.args.sigma, noise)
            images |= {name: window, f"noisy {name}": noisy}
        return images, clipped

    def make_trial(self, photo: str) -> Trial:
        """The copies and pairs that the parts asked for need, so that one pass serves them all."""
        pairs = {}
        if "1.2" in self.args.parts:
            pairs["shift"] = ("original", "translated")
        if "1.3" in self.args.parts:
            pairs["noise"] = ("original", "noisy original")
            pairs["noise translated"] = ("translated", "noisy translated")
        used = {name for pair in pairs.values() for name in pair}
        copies, _ = self.copies(photo)
        return Trial({name: copy for name, copy in copies.items() if name in used}, pairs)

    def make_picture(self, name: str, size: tuple[int, int]) -> Tensor:
        height, width = self.pictures[name].shape[:2]
        if (width, height) != size:
            self.resized[name] = f"{width}x{height}"
        return data.to_tensor(data.fit_to(self.pictures[name], *size))

    @cached_property
    def measured(self) -> dict[str, Measurement]:
        """Losses of the whole photos."""
        return measure(
            self.network,
            self.sizes,
            self.make_trial,
            self.others,
            self.make_picture,
            "photos",
            self.pictures is self.photos,
        )

    def measure_doses(self, network: VGG16Features, caption: str) -> dict[str, Response]:
        """Every loss's dose-response on the photos' central squares."""
        side, draws = self.curve_px, range(self.args.noise_seeds)

        def region(image: np.ndarray) -> Tensor:
            return data.centre_crop(data.to_tensor(image), side + MARGIN_PX, side)

        def make_trial(photo: str) -> Trial:
            noises = [self.noise(photo, torch.Size([3, side, side]), draw) for draw in draws]
            return dose_trial(region(self.photos[photo]), noises)

        def make_picture(name: str, size: tuple[int, int]) -> Tensor:
            height, width = self.pictures[name].shape[:2]
            if min(width - MARGIN_PX, height) < side:
                return self.make_picture(name, size)
            return region(self.pictures[name])[..., :side]

        sizes = dict.fromkeys(self.photos, (side, side))
        shared = self.pictures is self.photos
        measured = measure(network, sizes, make_trial, self.others, make_picture, caption, shared)
        return responses(measured, len(draws))

    def tag(self) -> str:
        """What every table and figure of features says of its photos and weights."""
        return f"{self.weights.label}, {len(self.photos)} photo(s)"

    def calibration(self) -> dict:
        """Which pictures the photos were calibrated with, and which had to be scaled for it."""
        used = sorted({name for names in self.others.values() for name in names})
        return {"references": used, "references_resized": self.resized}

    def provenance(self) -> dict:
        args = self.args
        source = f"image {args.image.name}" if args.image else f"folder {args.images}"
        return {
            "data": source if args.image or args.images else "embedded photos of scikit-image",
            "left_out": self.left_out,
            "weights_source": self.weights.source if "weights" in vars(self) else "none used",
            "device": str(self.device),
            "precision": args.precision,
        }


# -------------------------------------------------------------------------------------- the parts


def part_1_1(experiment: Experiment, folder: Path) -> dict:
    """Pixel losses under a shift."""
    args, images, cells = experiment.args, {}, {}
    for photo, image in tqdm(experiment.photos.items(), desc="photos", disable=None):
        a, b = translate(data.to_tensor(image), args.shift, args.edge)
        losses = pixel_losses(a, b)
        l1_uint8, l2_uint8 = wrapped_uint8_losses(data.to_uint8(a), data.to_uint8(b))
        images[photo] = {
            "size": [image.shape[1], image.shape[0]],
            **losses,
            "l1_uint8": l1_uint8,
            "l2_uint8": l2_uint8,
            "psnr": psnr(losses["l2"]),
            "ssim": ssim(a, b),
        }
        if len(cells) < FIGURE_ROWS:
            difference = plotting.HeatMap((a - b).abs().mean(0).numpy() * 255, "0-255, mean of RGB")
            cells[photo] = [data.to_uint8(a), data.to_uint8(b), difference]
    broken = [name for name, row in images.items() if row["l2_uint8"] < row["l1_uint8"] ** 2]
    cli.show_table(
        folder / "1.1_pixel_losses.txt",
        f"Shift by {args.shift:g} px to the left, edge {args.edge}; 0-255 units, PSNR in dB.\n"
        "Wrapped: the report's error, uint8 arithmetic. l2 >= l1^2 holds for all numbers; the\n"
        f"wrapped pair breaks it in {len(broken)} of {len(images)} photos.",
        ["photo", "size", "l1", "l2", "PSNR", "SSIM", "l1 wrapped", "l2 wrapped"],
        [
            [name, "{}x{}".format(*row["size"])]
            + [f"{row[key]:.2f}" for key in ("l1", "l2", "psnr")]
            + [f"{row['ssim']:.4f}", f"{row['l1_uint8']:.2f}", f"{row['l2_uint8']:.2f}"]
            for name, row in images.items()
        ],
    )
    plotting.image_grid(
        folder / "1.1_shift.png",
        f"Translation by {args.shift:g} px to the left, edge: {args.edge}",
        ["original", "translated", "absolute difference"],
        cells,
    )
    return {
        "shift_px": args.shift,
        "edge": args.edge,
        "interpolation": "band-limited (Fourier)" if args.shift % 1 else "none, whole pixels",
        "images": images,
        "wrapped_breaks_inequality": broken,
    }


def part_1_2(experiment: Experiment, folder: Path) -> dict:
    """VGG-16, and its feature losses under the shift."""
    args = experiment.args
    input_size = (3, args.summary_size, args.summary_size)
    table = summary.summary_table(summary.without_weights(vgg16), input_size)
    cli.show_text(folder / "1.2_vgg16_summary.txt", table)
    losses = summarise(experiment.measured, "shift")
    numbers = {name: LAYERS[name].number for name in experiment.layers}
    cli.show_table(
        folder / "1.2_feature_losses.txt",
        f"Shift by {args.shift:g} px, edge {args.edge}, {experiment.tag()}.\n"
        "Features: MSE, and MAE as mae_. raw: mean loss. relative: 0 = the same, 1 = another\n"
        f"picture, with its 95 % bootstrap interval over photos.\n{_other_pictures(experiment)}",
        ["loss", "layer", "raw", "relative", "95 % interval"],
        [
            [loss, str(numbers.get(loss.removeprefix("mae_"), "")), *_cells(row)]
            for loss, row in losses.items()
        ],
    )
    shown = [loss for loss in losses if not loss.startswith("mae_")]
    plotting.bars(
        folder / "1.2_feature_losses.png",
        f"Shift by {args.shift:g} px to the left: {experiment.tag()}",
        "calibrated loss\n(0 = the same, 1 = another picture)",
        shown,
        *([losses[name][key] for name in shown] for key in ("relative", "low", "high")),
    )
    return {
        "weights": {"source": experiment.weights.source, "sha256": experiment.weights.sha256},
        "total_params": sum(count for _, _, count in summary.layer_rows(table)),
        "summary_size_px": args.summary_size,
        "layers": numbers,
        **experiment.calibration(),
        "losses": losses,
    }


def part_1_3(experiment: Experiment, folder: Path) -> dict:
    """Robustness to noise, and the noise that equals a one-pixel shift."""
    args = experiment.args
    losses, clipped_share = _noise_losses(experiment, folder)
    found = {
        "sigma": args.sigma,
        "clipped_share": clipped_share,
        "noise_seeds": args.noise_seeds,
        "losses": losses["noise"],
        "losses_translated": losses["noise translated"],
        **experiment.calibration(),
    }
    if args.no_curves:
        unknown = dict.fromkeys(name for name, row in losses["noise"].items() if row["relative"])
        return found | {"shift_equivalent_sigma": unknown, "curves": None}
    tags = {"weights": experiment.tag()}
    curves = {"weights": experiment.measure_doses(experiment.network, "dose-response")}
    if args.weights != "random":
        control = random_vgg16(args.seed, not args.no_lpips)
        tags["random_weights"] = f"{control.label}, {len(experiment.photos)} photo(s)"
        network = experiment.network_with(control)
        curves["random_weights"] = experiment.measure_doses(network, "dose-response, control")
    numbers = {which: _curve_numbers(one) for which, one in curves.items()}
    limits = _loss_limits(numbers)
    for which, tag in tags.items():
        name = "1.3_dose_response" + ("_random" if which == "random_weights" else "")
        _show_curves(folder, name, tag, numbers[which], limits, experiment)
    equal = {
        which: {loss: shift_equivalent_sigma(response) for loss, response in one.items()}
        for which, one in curves.items()
    }
    _show_equivalents(folder, experiment, equal, numbers["weights"])
    return found | {
        "shift_equivalent_sigma": {loss: row["sigma"] for loss, row in equal["weights"].items()},
        "shift_equivalent_sigma_intervals": equal,
        "curves": {
            "shift_px": SHIFTS_PX,
            "sigma": SIGMAS,
            "crop_px": experiment.curve_px,
            **numbers,
        },
    }


def _noise_losses(experiment: Experiment, folder: Path) -> tuple[dict[str, dict], dict[str, float]]:
    """The report's Figures 7 to 9: both pairs, with PSNR, SSIM and the share of clipped values."""
    sigma, cells, quality = experiment.args.sigma, {}, {"original": [], "translated": []}
    losses = {pair: summarise(experiment.measured, pair) for pair in ("noise", "noise translated")}
    for photo in tqdm(experiment.photos, desc="PSNR and SSIM", disable=None):
        images, clipped = experiment.copies(photo)
        for name, values in quality.items():
            a, b = images[name], images[f"noisy {name}"]
            values.append([psnr(pixel_losses(a, b)["l2"]), ssim(a, b), clipped[name]])
        if len(cells) < FIGURE_ROWS:
            cells[photo] = [
                data.to_uint8(data.centre_crop(image, DETAIL_PX, DETAIL_PX))
                for image in images.values()
            ]
    means = {name: np.mean(values, axis=0) for name, values in quality.items()}
    for pair, name in zip(losses, means, strict=True):
        for quantity, mean in zip(("psnr", "ssim"), means[name], strict=False):
            losses[pair][quantity] = {"raw": mean, "relative": None, "low": None, "high": None}
    clipped_share = {name: values[2] for name, values in means.items()}
    cli.show_table(
        folder / "1.3_noise.txt",
        f"Gaussian noise, sigma {sigma:g} (0-255 units), {experiment.tag()}; "
        f"clipped:\n{clipped_share['original']:.1%} of the original's values,"
        f" {clipped_share['translated']:.1%} of the translated one's.\n"
        "Original against its noisy copy; (tr.): translated against its noisy copy.\n"
        f"{_other_pictures(experiment)}",
        ["loss", "raw", "relative", "95 % interval", "raw (tr.)", "relative (tr.)", "95 % (tr.)"],
        [
            [loss, *_cells(row), *_cells(losses["noise translated"][loss])]
            for loss, row in losses["noise"].items()
        ],
    )
    headers = ["original", "noisy original", "translated", "noisy translated"]
    plotting.image_grid(
        folder / "1.3_noise.png",
        f"Noise of sigma {sigma:g} of 255, central {DETAIL_PX} px at most",
        headers,
        cells,
    )
    return losses, clipped_share


def _curve_numbers(curves: dict[str, Response]) -> dict[str, dict]:
    """{loss: {"shift" | "noise": {relative, low, high}}}, each of one number a dose."""
    numbers: dict[str, dict] = {loss: {} for loss in curves}
    for loss, response in curves.items():
        for kind, values in vars(response).items():
            low, high = bootstrap_interval(values)
            mean = values.mean(axis=(0, 1))
            numbers[loss][kind] = {"relative": mean, "low": low, "high": high}
    return numbers


def _loss_limits(numbers: dict) -> tuple[float, float]:
    """Of the vertical axis, so that all doses but 0 fit and the control has the same scale."""
    shown = [
        row[kind]
        for one in numbers.values()
        for loss, row in one.items()
        for kind in row
        if not loss.startswith("mae_")
    ]
    lowest = min(row["relative"][1:].min() for row in shown)
    highest = max(max(row["relative"].max(), np.nanmax(row["high"], initial=0)) for row in shown)
    return 0.7 * lowest, 1.4 * highest


def _show_curves(
    folder: Path,
    name: str,
    tag: str,
    numbers: dict,
    limits: tuple[float, float],
    experiment: Experiment,
) -> None:
    side, draws = experiment.curve_px, experiment.args.noise_seeds
    title = f"{tag}: central {side}x{side} px squares, {draws} noise draw(s)"
    shown = {loss: row for loss, row in numbers.items() if not loss.startswith("mae_")}
    kinds = {
        "shift": ("translation", "shift in px", SHIFTS_PX),
        "noise": ("Gaussian noise", "sigma in 0-255 units", SIGMAS),
    }
    panels, tables = [], []
    for kind, (panel_title, xlabel, doses) in kinds.items():
        # Dose 0 has loss 0, which a logarithmic axis can't show.
        lines = {loss: tuple(x[1:] for x in row[kind].values()) for loss, row in shown.items()}
        panels.append(plotting.Panel(panel_title, xlabel, doses[1:], lines))
        rows = [
            [loss, *(f"{x:.4f}" for x in row[kind]["relative"])] for loss, row in numbers.items()
        ]
        tables.append(cli.aligned([xlabel, *(f"{dose:g}" for dose in doses)], rows))
    ylabel = "calibrated loss (0 = the same, 1 = another picture)"
    plotting.dose_response(folder / f"{name}.png", title, ylabel, panels, limits)
    text = "\n\n".join([f"Calibrated losses, {title}", *tables])
    cli.show_text(folder / f"{name}.txt", f"{text}\n")


def _show_equivalents(folder: Path, experiment: Experiment, equal: dict, numbers: dict) -> None:
    headers = [
        "loss",
        "relative at 1 px",
        "equal sigma",
        "95 % interval",
        "random",
        "95 % (random)",
    ]
    control = " random: the same with random weights." if len(equal) > 1 else ""
    rows = []
    for loss, row in numbers.items():
        rows.append([loss, f"{row['shift']['relative'][SHIFTS_PX.index(1)]:.4f}"])
        for one in equal.values():
            ends = [one[loss][key] for key in ("sigma", "low", "high")]
            sigma, low, high = ("none" if math.isinf(end) else f"{end:.1f}" for end in ends)
            rows[-1] += [sigma, "-" if math.isnan(ends[1]) else f"{low} - {high}"]
    cli.show_table(
        folder / "1.3_shift_equivalent_noise.txt",
        f"The noise that costs as much as a one-pixel shift: sigma in 0-255 units,"
        f" {experiment.tag()},\ntheir central {experiment.curve_px}x{experiment.curve_px} px. A low"
        f" sigma: a loss more sensitive to noise, by the measure of its own answer\nto the shift."
        f' "none": not reached up to sigma {max(SIGMAS)}.{control}',
        headers[: len(rows[0])],
        rows,
    )


def _other_pictures(experiment: Experiment) -> str:
    names = experiment.calibration()["references"]
    sizes = (
        f"{name} ({experiment.resized[name]})" if name in experiment.resized else name
        for name in names
    )
    scaled = ";\nthose with a size were scaled to the photo's" if experiment.resized else ""
    return f"Another picture: {', '.join(sizes)}{scaled}."


def _cells(row: dict) -> list[str | None]:
    relative = None if row["relative"] is None else f"{row['relative']:.4f}"
    known = relative and not math.isnan(row["low"])
    return [
        f"{row['raw']:.4g}",
        relative,
        f"{row['low']:.4f} - {row['high']:.4f}" if known else None,
    ]


PARTS = {"1.1": part_1_1, "1.2": part_1_2, "1.3": part_1_3}


def make_parser() -> cli.ProblemParser:
    """The command line of this problem."""
    parser = cli.ProblemParser(__doc__, PARTS)
    add = parser.add
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--image", type=Path, metavar="FILE", help="one image (default: embedded photos)"
    )
    source.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="all images of a folder (default: embedded photos)",
    )
    add("--shift", type=cli.non_negative, default=1.0, help="translation to the left in px")
    add(
        "--edge", choices=("crop", "replicate", "wrap"), default="crop", help="what the border does"
    )
    add(
        "--summary-size",
        type=cli.at_least(32),
        default=224,
        help="input side of the VGG-16 table in px, 32 or more",
    )
    add("--layers", nargs="+", default=REPORT_LAYERS, help="layers, as 30 or relu5_3")
    add("--no-lpips", action="store_true", help="leave LPIPS out")
    add(
        *("--reference", "--references"),
        type=Path,
        nargs="+",
        metavar="FILE",
        help="unrelated pictures to calibrate with (default: the other photos)",
    )
    add(
        "--max-references", type=cli.positive, default=8, help="unrelated pictures a photo, at most"
    )
    add("--weights", default="auto", help="auto, random (a control) or a file of VGG-16 weights")
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the convolutions; bf16 is too coarse below sigma 2 and 1 px",
    )
    add("--sigma", type=cli.non_negative, default=25.0, help="noise of part 1.3 in 0-255 units")
    add("--noise-seeds", type=cli.positive, default=3, help="noise draws of the dose-response")
    add("--curve-size", type=cli.positive, default=256, help="side of its squares in px, at most")
    add("--no-curves", action="store_true", help="leave the dose-response out of part 1.3")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    cli.run_parts(PARTS, args, "problem1", Experiment)


if __name__ == "__main__":
    sys.exit(cli.guard(main))
