"""Controls of Problem 1: padding at borders, fractional shifts made exactly, the report's scale.

Each is measured on a few pictures alone, which its result names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from common.data.images import to_tensor, to_uint8
from common.networks.calibration import Calibrated
from common.networks.distortions import add_noise, ranking, translate, unit_noise
from common.networks.losses import Loss, features_of, mae, mse, registry, wrapped_uint8_losses
from common.networks.vgg import LAYERS, VGG16Features, valid_cells
from common.networks.weights import Weights
from common.studies.perceptual import (
    CONTROL,
    Squares,
    calibrate,
    curves,
    distortion_rows,
    shift_equivalents,
)

BORDER_SIDE_PX = 384  # of the crops whose cells beyond the reach of the padding are compared apart
REPORT_SIDE_PX = 244  # of the report's input
# The report's losses of the shift by layer, and of noise (its sigma is not said) at layer 30.
REPORT = {"relu1_2": 213.1700, "relu2_2": 279.9030, "relu3_1": 363.6020, "relu5_3": 11.8388}
REPORT_NOISE = 134.1896
# How a picture in [0, 1] may have been given to the network, as (factor, mean, std).
MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
SCALES = {
    "0-255": (255, 0 * MEAN, 1 + 0 * STD),
    "0-255, less the mean": (255, 255 * MEAN, 1 + 0 * STD),
    "0-255, normalised": (255, MEAN, STD),
    "0-1": (1, 0 * MEAN, 1 + 0 * STD),
    "0-1, normalised": (1, MEAN, STD),
}


def enlarged(squares: Squares, names: Sequence[str], side_px: int) -> Squares:
    """Squares of the same pictures with another side, each other's "another picture"."""
    return replace(squares, side_px=side_px, set_size=len(names), references=None)


def borders(
    squares: Squares, network: VGG16Features, names: Sequence[str], side_px: int, sigma: float
) -> dict:
    """How losses change where cells that see the zeros of the padding are left out.

    {"crop_px", "pictures", "cells": {tap: (all, valid)}, "losses": {loss: {"shift" | "noise":
    {"all", "valid"}}}}: calibrated losses of a one-pixel shift and of noise on larger crops.
    """
    large = enlarged(squares, names, side_px)
    cells = {tap: valid_cells(tap, side_px) for tap in network.taps}

    def of_valid(loss: Loss) -> Loss:
        def crop(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
            maps = {tap: features[tap][..., cells[tap], cells[tap]] for tap in network.taps}
            return {**features, **maps}

        return lambda a, b: loss(crop(a), crop(b))

    losses = {name: loss for name, loss in registry(network).items() if name not in ("l1", "dssim")}
    both = losses | {f"valid {name}": of_valid(loss) for name, loss in losses.items()}

    def make_copies(name: str) -> tuple[dict[str, Tensor], dict]:
        region = large.region(name)
        square = region[..., :side_px]
        noise = unit_noise(square.shape, squares.seed, names.index(name), 0)
        copies = {"original": square, "moved": translate(region, 1, "crop")[1][..., :side_px]}
        copies["noisy"] = add_noise(square, sigma, noise)[0]
        return copies, {("shift", 0): ("original", "moved"), ("noise", 0): ("original", "noisy")}

    found = calibrate(large, network, make_copies, names, "borders", both)

    def row(name: str) -> dict:
        return {
            pair: {"all": found.row(pair, name)["relative"],
                   "valid": found.row(pair, f"valid {name}")["relative"]}
            for pair in ("shift", "noise")
        }  # fmt: skip

    counts = {}
    for tap, kept in cells.items():
        stride_px = LAYERS[tap].stride_px
        counts[tap] = [(side_px // stride_px) ** 2, (kept.stop - kept.start) ** 2]
    rows = {name: row(name) for name in losses}
    return {"crop_px": side_px, "pictures": list(names), "cells": counts, "losses": rows}


def fractions(squares: Squares, network: VGG16Features, names: Sequence[str]) -> dict:
    """Half a pixel of shift made exactly, beside the same by Fourier interpolation.

    Exactly: a picture of twice the size moves by a whole pixel, and every 2x2 pixels are averaged
    after that. {"side_px", "pictures", "losses": {loss: {"exact", "fourier", "whole"}}}: calibrated
    losses of half a pixel in both ways, and of a whole one.
    """
    side_px = squares.side_px
    large = enlarged(squares, names, 2 * side_px)

    def halved(image: Tensor) -> Tensor:
        return functional.avg_pool2d(image, 2)

    def make_copies(name: str) -> tuple[dict[str, Tensor], dict]:
        region = large.region(name)
        small = halved(region)
        copies = {
            "original": small[..., :side_px],
            "exact": halved(region[..., 1 : 2 * side_px + 1]),
            "fourier": translate(small, 0.5, "crop")[1][..., :side_px],
            "whole": small[..., 1 : side_px + 1],
        }
        return copies, {(pair, 0): ("original", pair) for pair in copies if pair != "original"}

    found = calibrate(large, network, make_copies, names, "half a pixel")
    rows = {
        loss: {pair: found.row(pair, loss)["relative"] for pair in found.pairs}
        for loss in found.losses
    }
    return {"side_px": side_px, "pictures": list(names), "losses": rows}


def report_scale(
    pictures: Mapping[str, np.ndarray], weights: Weights, sigma: float, seed: int, device: str
) -> dict:
    """Which scale of the input gives the report's raw losses, by trying.

    {"report": its numbers, "pictures": names, "rows": [{"scale", "error", the report's layers,
    "noise", "factor"}]}: means over pictures that are shifted by a pixel and then scaled to 244 px
    square; "factor" is how far off the worst of the five numbers is, as a ratio.
    """
    network = VGG16Features(replace(weights, lpips_heads=None), list(REPORT)).to(device)
    values = {(scale, error): [] for scale in SCALES for error in ("MSE", "MAE")}
    for number, picture in enumerate(pictures.values()):
        original, moved = (
            to_tensor(resize(columns, REPORT_SIDE_PX))
            for columns in (picture[:, :-1], picture[:, 1:])
        )
        noise = unit_noise(original.shape, seed, number, 0)
        noisy = add_noise(original, sigma, noise)[0]
        for scale, (factor, mean, std) in SCALES.items():
            network.mean, network.std = (
                (part / factor).view(3, 1, 1).to(device) for part in (mean, std)
            )
            a, b, c = map(partial(features_of, network), (original, moved, noisy))
            for error, measure in (("MSE", mse), ("MAE", mae)):
                row = {layer: measure(a[layer], b[layer]) for layer in REPORT}
                values[scale, error].append({**row, "noise": measure(a["relu5_3"], c["relu5_3"])})
    wanted, rows = {**REPORT, "noise": REPORT_NOISE}, []
    for (scale, error), of_all in values.items():
        row = {key: float(np.mean([values[key] for values in of_all])) for key in wanted}
        off = max(abs(np.log(row[key] / wanted[key])) for key in wanted)
        rows.append({"scale": scale, "error": error, **row, "factor": float(np.exp(off))})
    return {"report": wanted, "pictures": list(pictures), "side_px": REPORT_SIDE_PX, "rows": rows}


def resize(image: np.ndarray, side_px: int) -> np.ndarray:
    """An image, uint8 (height, width, 3), stretched to a square."""
    return np.array(Image.fromarray(image).resize((side_px, side_px)))


def wrapped_noise(image: Tensor, noise: Tensor, sigma: float) -> dict[str, dict[str, float]]:
    """The report's arithmetic error under noise, in the ways that noise may have been added.

    {way: {"l1_uint8", "l2_uint8"}} of an image (3, H, W) and unit noise. "clipped": noise is added
    to numbers, clipped and rounded; "cast, saturating": noise is cast to 8 bits, where negative
    values wrap, and added up to 255; "cast, wrapping": the sum wraps too.
    """
    original = to_uint8(image)
    cast = (noise * sigma).permute(1, 2, 0).numpy().astype(np.int64).astype(np.uint8)
    ways = {
        "clipped": to_uint8(add_noise(image, sigma, noise)[0]),
        "cast, saturating": (original.astype(int) + cast).clip(max=255).astype(np.uint8),
        "cast, wrapping": original + cast,
    }
    keys = ("l1_uint8", "l2_uint8")
    return {
        way: dict(zip(keys, wrapped_uint8_losses(original, noisy), strict=True))
        for way, noisy in ways.items()
    }


# --------------------------------------------------------------------- over draws of random weights


def mean_rows(rows: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """The means of {name: {key: number}} over several such."""
    return {
        name: {key: float(np.mean([row[name][key] for row in rows])) for key in numbers}
        for name, numbers in rows[0].items()
    }


def over_draws(values: Sequence[float], key: str) -> dict[str, float]:
    """The mean over draws of random weights under `key`, the lowest and the highest draw."""
    return {key: float(np.mean(values)), "low": min(values), "high": max(values)}


def of_draws(found: Sequence[Calibrated], pair: str) -> dict[str, dict[str, float]]:
    """{loss: {"raw", "relative", "low", "high"}} of a pair over draws."""
    means = mean_rows([draw.rows(pair) for draw in found])
    return {
        loss: row | over_draws([draw.row(pair, loss)["relative"] for draw in found], "relative")
        for loss, row in means.items()
    }


def curves_of_draws(found: Sequence[Calibrated]) -> dict[str, dict]:
    """The curves of `perceptual.curves` over draws, low and high their range."""
    by_draw, rows = [curves(draw, CONTROL) for draw in found], {}
    for loss in found[0].losses:
        rows[loss] = {}
        for kind in ("shift", "noise"):
            values = np.array([of_draw[loss][kind]["relative"] for of_draw in by_draw])
            ends = {"relative": values.mean(0), "low": values.min(0), "high": values.max(0)}
            rows[loss][kind] = {key: row.tolist() for key, row in ends.items()}
    return rows


def equivalents_of_draws(found: Sequence[Calibrated]) -> dict[str, dict[str, float]]:
    """The noise that equals a one-pixel shift over draws, low and high their range."""
    by_draw = [shift_equivalents(draw, CONTROL) for draw in found]
    return {
        loss: over_draws([row[loss]["sigma"] for row in by_draw], "sigma") for loss in by_draw[0]
    }


def ranking_of_draws(found: Sequence[Calibrated]) -> dict[str, dict]:
    """`distortions.ranking` over draws, low and high their range, in the losses' order."""
    by_draw, rows = [ranking(distortion_rows(draw)) for draw in found], {}
    for loss in found[0].losses:
        rows[loss] = over_draws([row[loss]["mean"] for row in by_draw], "mean")
        rows[loss]["ratios"] = {
            name: over_draws([row[loss]["ratios"][name]["mean"] for row in by_draw], "mean")
            for name in by_draw[0][loss]["ratios"]
        }
    return rows
