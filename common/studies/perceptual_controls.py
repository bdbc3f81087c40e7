"""Controls of Problem 1: padding at borders, fractional shifts made exactly, the report's scale.

Each control is measured on a few pictures alone, and its result names them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from common.data.images import IMAGENET_MEAN, IMAGENET_STD, to_tensor, to_uint8
from common.networks.distortions import add_noise, translate, unit_noise
from common.networks.losses import features_of, mae, mse, registry, wrapped_uint8_losses
from common.networks.vgg import LAYERS, VGG16Features, valid_cells
from common.networks.weights import Weights
from common.studies.perceptual import Copies, Pairs, Squares, calibrate, moved

BORDER_SIDE_PX = 384  # of the crops in which cells that see no padding are compared apart
REPORT_SIDE_PX = 244  # of the report's input
# The report's losses under the shift, by layer, and under noise of unknown sigma, at layer 30.
REPORT = {"relu1_2": 213.1700, "relu2_2": 279.9030, "relu3_1": 363.6020, "relu5_3": 11.8388}
REPORT_NOISE = 134.1896
# Ways in which the report may have scaled a picture in [0, 1], as (factor, mean, std).
MEAN, STD = (torch.tensor(part).view(3, 1, 1) for part in (IMAGENET_MEAN, IMAGENET_STD))
SCALES = {
    "0-255": (255, 0 * MEAN, 1 + 0 * STD),
    "0-255, less the mean": (255, 255 * MEAN, 1 + 0 * STD),
    "0-255, normalised": (255, MEAN, STD),
    "0-1": (1, 0 * MEAN, 1 + 0 * STD),
    "0-1, normalised": (1, MEAN, STD),
}


def borders(
    squares: Squares, network: VGG16Features, names: Sequence[str], most_px: int, sigma: float
) -> dict | None:
    """Compare losses over all cells with losses over valid cells, which see no padding zeros.

    Crops have sides of `most_px` at most; None if all cells of the deepest layer see zeros.

    {"crop_px", "pictures", "sigma", "cells": {tap: (all, valid)}, "losses": {loss: {"shift" |
    "noise": {"all", "valid"}}}}: losses of a one-pixel shift and of noise, calibrated.
    """
    side_px = min(most_px, BORDER_SIDE_PX)
    large = replace(squares, side_px=side_px, set_size=len(names), references=None)
    valid = {tap: valid_cells(tap, side_px) for tap in network.taps}
    if valid[network.taps[-1]].stop == valid[network.taps[-1]].start:
        return None

    def crop(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        maps = {tap: features[tap][..., cells, cells] for tap, cells in valid.items()}
        return {**features, **maps}

    def make_copies(name: str) -> tuple[Copies, Pairs]:
        region = large.region(name)
        square = region[..., :side_px]
        noise = unit_noise(square.shape, squares.seed, names.index(name), 0)
        copies = {"original": square, "shift": moved(region, 1)}
        copies["noise"] = add_noise(square, sigma, noise)[0]
        return copies, {pair: [("original", pair)] for pair in ("shift", "noise")}

    losses = {name: loss for name, loss in registry(network).items() if name not in ("l1", "dssim")}
    both = losses | {f"valid {k}": lambda a, b, f=f: f(crop(a), crop(b)) for k, f in losses.items()}
    found = calibrate(large, network, make_copies, names, "borders", both)

    def relative(pair: str, name: str) -> dict[str, float]:
        rows = {"all": found.row(pair, name), "valid": found.row(pair, f"valid {name}")}
        return {kind: row["relative"] for kind, row in rows.items()}

    return {
        "crop_px": side_px,
        "pictures": list(names),
        "sigma": sigma,
        "cells": {
            tap: [(side_px // LAYERS[tap].stride_px) ** 2, (cells.stop - cells.start) ** 2]
            for tap, cells in valid.items()
        },
        "losses": {name: {pair: relative(pair, name) for pair in found.pairs} for name in losses},
    }


def fractions(squares: Squares, network: VGG16Features, names: Sequence[str]) -> dict:
    """Compare an exact shift of half a pixel with one by Fourier interpolation.

    The exact one shifts a picture of twice the size by a whole pixel, and then averages every 2x2
    pixels. {"side_px", "pictures", "losses": {loss: {"exact", "fourier", "whole"}}}: calibrated
    losses of half a pixel in both ways, and of a whole pixel.
    """
    side_px = squares.side_px
    large = replace(squares, side_px=2 * side_px, set_size=len(names), references=None)
    halved = partial(functional.avg_pool2d, kernel_size=2)

    def make_copies(name: str) -> tuple[Copies, Pairs]:
        region = large.region(name)
        small = halved(region)
        copies = {
            "original": small[..., :side_px],
            "exact": halved(region[..., 1 : 2 * side_px + 1]),
            "fourier": translate(small, 0.5, "crop")[1][..., :side_px],
            "whole": small[..., 1 : side_px + 1],
        }
        return copies, {pair: [("original", pair)] for pair in ("exact", "fourier", "whole")}

    found = calibrate(large, network, make_copies, names, "half a pixel")
    losses = {
        loss: {pair: found.row(pair, loss)["relative"] for pair in found.pairs}
        for loss in found.losses
    }
    return {"side_px": side_px, "pictures": list(names), "losses": losses}


def report_scale(
    pictures: Mapping, weights: Weights, sigma: float, seed: int, device: torch.device
) -> dict:
    """Find the scale of the input that gives the report's raw losses on uint8 pictures by name.

    {"report": its numbers, "pictures": names, "sigma", "side_px": 244, "rows": [{"scale", "error",
    the report's layers, "noise", "factor"}]}: means over pictures that are shifted by a pixel and
    then scaled to 244 px square; "factor" is the largest ratio by which one of the five is off.
    """
    network = VGG16Features(replace(weights, lpips_heads=None), list(REPORT)).to(device)
    values = {(scale, error): [] for scale in SCALES for error in ("MSE", "MAE")}
    for number, picture in enumerate(pictures.values()):
        original, shifted = (
            to_tensor(np.array(Image.fromarray(columns).resize((REPORT_SIDE_PX, REPORT_SIDE_PX))))
            for columns in (picture[:, :-1], picture[:, 1:])
        )
        noise = unit_noise(original.shape, seed, number, 0)
        noisy = add_noise(original, sigma, noise)[0]
        for scale, (factor, mean, std) in SCALES.items():
            network.mean, network.std = ((part / factor).to(device) for part in (mean, std))
            a, b, c = map(partial(features_of, network), (original, shifted, noisy))
            for error, measure in (("MSE", mse), ("MAE", mae)):
                row = {layer: measure(a[layer], b[layer]) for layer in REPORT}
                values[scale, error].append({**row, "noise": measure(a["relu5_3"], c["relu5_3"])})
    wanted, rows = {**REPORT, "noise": REPORT_NOISE}, []
    for (scale, error), of_pictures in values.items():
        row = {key: float(np.mean([values[key] for values in of_pictures])) for key in wanted}
        off = max(abs(np.log(row[key] / wanted[key])) for key in wanted)
        rows.append({"scale": scale, "error": error, **row, "factor": float(np.exp(off))})
    about = {"report": wanted, "pictures": list(pictures), "sigma": sigma}
    return {**about, "side_px": REPORT_SIDE_PX, "rows": rows}


def wrapped_noise(image: Tensor, noise: Tensor, sigma: float) -> dict[str, dict[str, float]]:
    """The report's wrapped uint8 losses under noise, for the ways in which it may have been added.

    {way: {"l1_uint8", "l2_uint8"}} of an image (3, H, W) and unit noise. "clipped": the sum of
    floats is clipped and rounded; "cast, saturating": noise is cast to 8 bits, where negative
    values wrap, and the sum is clipped at 255; "cast, wrapping": the sum wraps too.
    """
    original = to_uint8(image)
    cast = (noise * sigma).permute(1, 2, 0).numpy().astype(np.int64).astype(np.uint8)
    ways = {
        "clipped": to_uint8(add_noise(image, sigma, noise)[0]),
        "cast, saturating": (original.astype(int) + cast).clip(max=255).astype(np.uint8),
        "cast, wrapping": original + cast,
    }
    return {way: wrapped_uint8_losses(original, noisy) for way, noisy in ways.items()}


def averaged(rows: Sequence[Mapping]) -> dict:
    """Average the results of several pictures or draws: the means of numbers and of lists.

    If they have intervals, "low" and "high" become the lowest and the highest of the results.
    """
    joined = {}
    for key, first in rows[0].items():
        values = [row[key] for row in rows]
        joined[key] = averaged(values) if isinstance(first, Mapping) else _over(np.mean, values)
    if "low" in joined:
        key = next(key for key in ("relative", "sigma", "mean") if key in joined)
        values = [row[key] for row in rows]
        joined |= {"low": _over(np.min, values), "high": _over(np.max, values)}
    return joined


def _over(statistic: Callable, values: Sequence[float | Sequence[float]]) -> float | list[float]:
    return statistic(np.array(values), axis=0).tolist()
