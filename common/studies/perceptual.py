"""Problem 1's measurements: squares of pictures, their copies, and results from their losses.

Every picture gives one square. Its copies are shifted, noisy or distorted, and each goes through
the network once. All tables and curves come from the calibrated losses of pairs of copies.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, product

import numpy as np
import torch
from torch import Tensor

from common.data.images import centre_crop, fit_to, to_tensor
from common.errors import UserError
from common.job import progress
from common.networks import distortions
from common.networks.losses import Calibrated, compare, features_of, pixel_losses, registry
from common.networks.vgg import VGG16Features
from common.reporting.problem1 import is_absolute
from common.reporting.statistics import interval


@dataclass(frozen=True)
class Doses:
    """Doses: shifts in px, and sigmas of noise in 0-255 units, each list beginning with 0."""

    shifts_px: Sequence[float]
    sigmas: Sequence[float]

    @property
    def shifts(self) -> list[str]:
        """The names of the shift pairs, without dose 0: identical pictures have no loss."""
        return [f"shift {px:g}" for px in self.shifts_px[1:]]

    @property
    def noises(self) -> list[str]:
        """The names of the noise pairs, without dose 0."""
        return [f"noise {sigma:g}" for sigma in self.sigmas[1:]]


TRAINED = Doses((0, 0.5, 1, 2, 4, 8, 16), (0, 1, 2, 5, 10, 15, 25, 50, 100))
CONTROL = Doses((0, 1, 4, 16), (0, 2, 5, 10, 25, 100))  # for networks with random weights
MARGIN_PX = max(TRAINED.shifts_px)
Copies = dict[str, Tensor]
Pairs = dict[str, list[tuple[str, str]]]  # by the pair's name: two copies' names for each draw


@dataclass(frozen=True)
class Squares:
    """The central squares of pictures, with a margin on the right that a shift moves in.

    pictures: uint8 (height, width, 3) by name, read on access. references: unrelated pictures from
    elsewhere; with None the pictures of a set serve each other as references. set_size: about how
    many pictures make a set; one set is held in memory at a time.
    """

    pictures: Mapping[str, np.ndarray]
    side_px: int
    margin_px: int
    seed: int
    set_size: int
    references: Mapping[str, np.ndarray] | None = None

    def region(self, name: str) -> Tensor:
        """A picture's square with its margin, (3, side_px, side_px + margin_px)."""
        image = to_tensor(self.pictures[name])
        return centre_crop(image, self.side_px + self.margin_px, self.side_px).contiguous()

    def reference(self, name: str) -> Tensor:
        """A reference's central square; a picture that is too small is scaled up first."""
        picture, side_px = self.references[name], self.side_px
        if min(picture.shape[:2]) < side_px:
            picture = fit_to(picture, side_px, side_px)
        return centre_crop(to_tensor(picture), side_px, side_px).contiguous()

    def sets(self, names: Sequence[str]) -> list[list[str]]:
        """The names in random sets (by the seed) of about `set_size`; no picture is left alone."""
        order = np.random.default_rng(self.seed).permutation(len(names))
        parts = np.array_split(order, max(1, len(names) // self.set_size))
        return [[names[place] for place in sorted(part)] for part in parts]


def calibrate(
    squares: Squares,
    network: VGG16Features,
    make_copies: Callable[[str], tuple[Copies, Pairs]],
    names: Sequence[str],
    label: str,
    losses: Mapping[str, Callable] | None = None,
) -> Calibrated:
    """Calibrated losses of pairs of copies of pictures' squares; each image takes one pass.

    `make_copies(picture)` returns the copies, among them the square itself as "original", and the
    pairs; the draws of a pair are averaged. `losses` defaults to those of the registry.
    """
    losses, features = losses or registry(network), partial(features_of, network)
    index = {name: place for place, name in enumerate(names)}
    raw, unrelated, others, pairs = {}, [], [], {}
    with progress(total=len(names), desc=label, unit="picture") as bar:
        for members in squares.sets(names):
            made = {name: make_copies(name) for name in members}
            known = {name: features(made[name][0]["original"]) for name in members}
            for a, b, of_b in _unrelated(squares, members, known, features):
                unrelated.append([float(loss(known[a], of_b)) for loss in losses.values()])
                others.append((index[a], index.get(b)))
            found = _side_by_side(partial(_pair_losses, losses, features), known, made)
            for name, row in zip(members, found, strict=True):
                raw[name] = row
                bar.update()
            pairs = made[name][1]
    if not unrelated:
        raise UserError(f"{names[0]}: no other picture to calibrate with; give --reference FILE")
    rows = np.array([raw[name] for name in names])
    return Calibrated(list(pairs), list(losses), rows, np.array(unrelated), others)


def _side_by_side(work: Callable, known: Mapping, made: Mapping) -> Iterator[list]:
    """Yield `work` of each picture in order: a pass of one picture keeps few cores busy."""
    workers = min(torch.get_num_threads(), len(made))
    each = torch.get_num_threads() // workers
    with ThreadPoolExecutor(workers, "", torch.set_num_threads, (each,)) as threads:
        try:
            yield from threads.map(work, known.values(), *zip(*made.values(), strict=True))
        finally:  # after Ctrl-C each thread ends at its next copy
            for copies, _ in made.values():
                copies.clear()


def _pair_losses(losses: Mapping, features: Callable, known: Mapping, copies: Copies, pairs: Pairs):
    """Raw losses of a picture's pairs, means of their draws; `known` has the square's features."""
    values = compare(losses, features, copies, chain(*pairs.values()), {"original": known})
    return [np.mean([list(values[d].values()) for d in draws], axis=0) for draws in pairs.values()]


def _unrelated(squares: Squares, members: Sequence[str], known: Mapping, features: Callable):
    """Yield (picture, other's name, other's features) for each unrelated pair that differs."""
    if squares.references is None:
        for a, b in combinations(members, 2):
            if not torch.equal(known[a]["pixels"], known[b]["pixels"]):
                yield a, b, known[b]
        return
    for name, picture in squares.references.items():
        of_reference = features(squares.reference(name))
        for a in members:
            if not np.array_equal(squares.pictures[a], picture):
                yield a, ("reference", name), of_reference


# ------------------------------------------------------------------------------- copies of a square


def moved(region: Tensor, shift_px: float, edge: str = "crop") -> Tensor:
    """Shift a region's square to the left; with "crop" real pixels of the margin move in."""
    side_px = region.shape[1]
    if edge == "crop":
        return distortions.translate(region, shift_px, edge)[1][..., :side_px]
    return distortions.translate(region[..., :side_px], shift_px, edge)[1]


@dataclass(frozen=True)
class Treatment:
    """What is done to each square: the shift and noise that the user chooses, and the doses.

    noise_seeds: the number of draws of the doses' noise. doses: None leaves out all but the shift.
    """

    shift_px: float
    edge: str
    sigma: float
    seed: int
    noise_seeds: int = 1
    doses: Doses | None = None

    def copies(self, region: Tensor, index: int) -> tuple[Copies, Pairs]:
        """The copies of a (3, S, S + margin) region of the picture `index`, and pairs of them.

        Pairs are "shift", "noise", "noise translated" (the shifted square and its noisy copy),
        "shift DOSE", "noise DOSE", and "distorted NAME", a distortion with the same l2 as a shift
        of one pixel.
        """
        square = region[..., : region.shape[1]]
        draw_noise = partial(distortions.unit_noise, square.shape, self.seed, index)
        noises = [draw_noise(n) for n in range(self.noise_seeds)]
        copies, pairs = {"original": square}, {}

        def shift(pair: str, px: float, edge: str) -> str:
            name = f"moved {px:g} {edge}"
            copies[name], pairs[pair] = moved(region, px, edge), [("original", name)]
            return name

        def noise(pair: str, sigma: float, draws: int, of: str = "original") -> None:
            pairs[pair] = []
            for draw in range(draws):
                name = f"{of}, noisy {sigma:g} {draw}"
                copies[name] = distortions.add_noise(copies[of], sigma, noises[draw])[0]
                pairs[pair].append((of, name))

        translated = shift("shift", self.shift_px, self.edge)
        if self.doses is None:
            return copies, pairs
        noise("noise", self.sigma, 1)
        if self.doses is TRAINED:  # controls do not need this pair
            noise("noise translated", self.sigma, 1, translated)
        for px, pair in zip(self.doses.shifts_px[1:], self.doses.shifts, strict=True):
            shift(pair, px, "crop")
        for sigma, pair in zip(self.doses.sigmas[1:], self.doses.noises, strict=True):
            noise(pair, sigma, self.noise_seeds)
        l2 = pixel_losses(square, moved(region, 1))["l2"]
        for name, copy in distortions.distorted(square, l2, noises[0]).items():
            copies[name], pairs[f"distorted {name}"] = copy, [("original", name)]
        return copies, pairs


# ----------------------------------------------------------------- what is read off the curves


def curves(calibrated: Calibrated, doses: Doses) -> dict[str, dict]:
    """Loss curves {loss: {"shift" | "noise": {"relative", "low", "high"}}}, lists over doses."""
    rows = {loss: {} for loss in calibrated.losses}
    kinds = {"shift": doses.shifts, "noise": doses.noises}
    for loss, (kind, pairs) in product(rows, kinds.items()):
        values = calibrated.curves(pairs, loss)
        row = {"relative": values[0].tolist(), **interval(values[1:])}
        rows[loss][kind] = {key: [0.0, *numbers] for key, numbers in row.items()}
    return rows


def equivalent_sigma(noise: np.ndarray, target: float, sigmas: Sequence[float]) -> float:
    """The sigma at which the loss `noise` over `sigmas` first reaches `target`, or infinity.

    Both lists begin with dose 0. Interpolation is by a power law (a line in log-log) between two
    doses, and by a line from 0 to the first dose.
    """
    reached = np.flatnonzero(noise >= target)
    if not len(reached):
        return math.inf
    k = reached[0]
    if k <= 1:
        return sigmas[k] * target / noise[k] if k else 0.0
    noise_log, sigmas_log = np.log(noise[k - 1 : k + 1]), np.log(sigmas[k - 1 : k + 1])
    return float(np.exp(np.interp(np.log(target), noise_log, sigmas_log)))


def shift_equivalents(calibrated: Calibrated, doses: Doses) -> dict[str, dict[str, float]]:
    """The noise with the same loss as a one-pixel shift: {loss: {"sigma", "low", "high"}}."""
    rows = {}
    for loss in calibrated.losses:
        both = calibrated.curves(["shift 1", *doses.noises], loss)
        sigmas = [
            equivalent_sigma(np.array([0.0, *noise]), shift, doses.sigmas) for shift, *noise in both
        ]
        rows[loss] = {"sigma": sigmas[0], **interval(np.array(sigmas[1:]))}
    return rows


def slopes(calibrated: Calibrated, doses: Doses) -> dict:
    """Local slopes of the losses over sigma in log-log: 2 for a squared loss without saturation.

    {"sigma": geometric means of neighbouring doses, loss: {"slope", "low", "high"}}, all lists.
    """
    sigmas = np.log(doses.sigmas[1:])
    rows = {"sigma": np.exp((sigmas[1:] + sigmas[:-1]) / 2).tolist()}
    for loss in calibrated.losses:
        slope = np.diff(np.log(calibrated.curves(doses.noises, loss))) / np.diff(sigmas)
        rows[loss] = {"slope": slope[0].tolist(), **interval(slope[1:])}
    return rows


def turning_sigma(log_a: np.ndarray, log_b: np.ndarray, log_sigmas: np.ndarray) -> np.ndarray:
    """The sigmas (n,) from which on curves a (n, doses) lie above b, by lines between the doses.

    A sigma is 0 if a lies above b from the first dose on, and infinite if not at the last dose.
    """
    difference = log_a - log_b
    n, last = len(difference), difference.shape[-1] - 1
    last_below = np.where(difference < 0, np.arange(last + 1), -1).max(-1)
    turns = (last_below >= 0) & (last_below < last)
    before = np.where(turns, last_below, 0)
    low, high = difference[np.arange(n), before], difference[np.arange(n), before + 1]
    share = np.divide(low, low - high, out=np.zeros_like(low), where=turns)
    sigma = np.exp(log_sigmas[before] + np.diff(log_sigmas)[before] * share)
    return np.where(turns, sigma, np.where(last_below < 0, 0.0, np.inf))


def order_turns(calibrated: Calibrated, doses: Doses) -> list[dict]:
    """The sigma of noise at which the order of two losses turns, for each two of a kind.

    [{"a", "b", "sigma", "low", "high"}]: just below sigma the loss a is smaller than b, from there
    on it is larger. sigma is NaN if the order never turns: a is larger at all doses. An interval's
    end of 0 is a turn below the smallest dose, an infinite one a turn beyond the largest. Squared
    losses are compared with squared ones, absolute losses with absolute ones.
    """
    rows, log_sigmas = [], np.log(doses.sigmas[1:])
    logs = {loss: np.log(calibrated.curves(doses.noises, loss)) for loss in calibrated.losses}
    for a, b in combinations(calibrated.losses, 2):
        if is_absolute(a) != is_absolute(b):
            continue
        if logs[a][0, -1] < logs[b][0, -1]:
            a, b = b, a
        sigmas = turning_sigma(logs[a], logs[b], log_sigmas)
        rows.append({"a": a, "b": b, "sigma": float(sigmas[0]) or np.nan, **interval(sigmas[1:])})
    return rows


def distortion_ranking(calibrated: Calibrated) -> dict[str, dict]:
    """The `distortions.ranking` of the losses, by their raw values."""
    pairs = ["shift 1", *(f"distorted {name}" for name in distortions.DISTORTIONS)]
    places = [calibrated.pairs.index(pair) for pair in pairs]
    return distortions.ranking(calibrated.losses, calibrated.raw[:, places])
