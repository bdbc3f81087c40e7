"""Baselines on a problem's data: the accuracy to beat, reached without training a network."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from common import files, job
from common.errors import UserError
from common.networks.features import colour_histograms, hog_features, nearest, vgg_features
from common.networks.vgg import VGG16Features
from common.networks.weights import load_vgg16
from common.reporting.statistics import wilson_interval
from common.training import parallel
from common.training.evaluation import per_class
from common.training.head import ridge_layers
from common.training.runs import Setup

VGG_RIDGE = "VGG-16, ridge"
STRENGTHS = (30, 100, 300, 1000, 3000, 10_000, 30_000)  # of ridge regression
TAPS = ("relu2_2", "relu3_3", "relu4_3", "relu5_3")
LAYERS = (*((tap,) for tap in TAPS[1:]), TAPS[1:3], TAPS[:3])  # one, or several side by side
POOLINGS = {"mean": slice(0, 1), "mean and maximum": slice(0, 2)}
SIDE_PX_MAX, BATCH_SIZE = 128, 64  # of VGG-16's input
VERSION = 1  # of these computations: results kept by another version are not read

Candidate = tuple[dict, Callable[[str], Tensor]]  # settings, and a split's predicted labels


def baselines(setup: Setup) -> dict[str, dict]:
    """Classify val and test by chance, by colours, by edges and by VGG-16's features.

    Settings are chosen on val; test is evaluated once, with the chosen settings. Without VGG-16's
    weights its row is left out, and a line says so. The first process of a job computes for all.

    Returns:
        A dict per baseline, by name: val_top1, test_top1, its 95 % interval test_top1_low and
        test_top1_high, test_per_class (the mean over classes of the accuracy within the class; all
        in per cent), seconds, and chosen (the settings, by name).
    """
    _ = setup.packed  # on all processes, since packing waits for all of them
    made = setup.finished.get("baselines")  # beside the trainings
    rows = made or parallel.broadcast(partial(kept_baselines, setup))
    for name, row in rows.items():
        chosen = "".join(f", {key} {value}" for key, value in row["chosen"].items())
        job.say(f"{name}: {row['val_top1']:.2f} % on val, {row['test_top1']:.2f} % on test{chosen}")
    return rows


def kept_baselines(setup: Setup) -> dict[str, dict]:
    """Read the baselines from the cache; the first call takes minutes to compute and keep them."""
    packed = setup.packed.items()
    about = {split: [part.source.fingerprint(), len(part)] for split, part in packed}
    about |= {"image_size_px": setup.args.image_size, "version": VERSION}
    path = setup.args.cache / f"baselines-{files.digest_of(about)}.json"
    if path.exists():
        rows = files.load_json(path)
        job.say(f"baselines read from {path}")
    else:
        rows = _baselines(setup)
        if VGG_RIDGE in rows:
            with files.locked(path.parent, "fills the cache"):
                files.save_json(path, rows)
    return rows


def _baselines(setup: Setup) -> dict[str, dict]:
    measures = ("val_top1", "test_top1", "test_top1_low", "test_top1_high", "test_per_class")
    chance = dict.fromkeys(measures, 100 / setup.classes)
    rows = {"chance": {**chance, "seconds": 0.0, "chosen": {}}}
    kinds = {"colour": colour_histograms, "HOG": hog_features}
    for name, features_of in kinds.items():
        start, size_px = time.perf_counter(), setup.args.image_size
        features = {s: features_of(part.images, size_px) for s, part in setup.packed.items()}
        if name == "HOG":  # colours are the same in a mirrored image
            mirrored = features_of(setup.packed["train"].images[:, :, ::-1], size_px)
            features["train"] = torch.cat([features["train"], mirrored])
        seconds = time.perf_counter() - start
        predict = partial(_nearest, features, _labels(setup, features["train"]))
        rows[f"{name}, nearest neighbour"] = _row(setup, [({}, predict)], seconds)
        rows[f"{name}, ridge"] = _row(setup, _ridges(setup, {}, features.get), seconds)
    try:
        weights = load_vgg16("auto", seed=0, want_lpips=False)
    except UserError as error:
        job.say(f"{VGG_RIDGE}: left out: {error}", file=sys.stderr)
    else:
        network = VGG16Features(weights, list(TAPS)).to(setup.device)
        rows[VGG_RIDGE] = _row(setup, _vgg_candidates(setup, network))
    return rows


def _row(setup: Setup, candidates: Iterable[Candidate], seconds: float = 0.0) -> dict:
    """The result of the best candidate on val (the first of equals); `seconds` are added."""
    start, best = time.perf_counter(), -1.0
    labels = {split: part.labels for split, part in setup.packed.items()}
    for settings, predict in candidates:
        top1 = 100 * (predict("val") == labels["val"]).double().mean().item()
        if top1 > best:
            best, chosen, chosen_predict = top1, settings, predict
        if top1 == 100:  # no other can be better
            break
    hits = chosen_predict("test") == labels["test"]
    low, high = wilson_interval(int(hits.sum()), len(hits))
    return {
        "val_top1": best,
        "chosen": chosen,
        "test_top1": 100 * hits.double().mean().item(),
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_per_class": per_class(labels["test"], hits),
        "seconds": seconds + time.perf_counter() - start,
    }


def _labels(setup: Setup, train: Tensor) -> Tensor:
    labels = setup.packed["train"].labels
    return labels.repeat(len(train) // len(labels))  # of mirrored images too


def _nearest(features: dict, labels: Tensor, split: str) -> Tensor:
    return labels[nearest(features[split], features["train"])]


def _ridges(setup: Setup, settings: dict, features_of: Callable) -> Iterator[Candidate]:
    """Ridge regression on a split's features, by strength."""
    # Square roots, since a few counts and responses are large and most are small.
    train = features_of("train").sqrt()
    targets = functional.one_hot(_labels(setup, train), setup.classes).float()
    for strength, layer in zip(STRENGTHS, ridge_layers(train, targets, STRENGTHS), strict=True):
        predict = partial(_predict, features_of, layer)
        yield {**settings, "strength": strength}, predict


def _predict(features_of: Callable, layer: tuple[Tensor, Tensor], split: str) -> Tensor:
    return functional.linear(features_of(split).sqrt(), *layer).argmax(1)


def _vgg_candidates(setup: Setup, network: VGG16Features) -> Iterator[Candidate]:
    """All LAYERS, POOLINGS and STRENGTHS, at the pictures' size and at 1.5 times that size."""
    size_px = setup.args.image_size
    for side_px in sorted({min(size_px, SIDE_PX_MAX), min(size_px * 3 // 2, SIDE_PX_MAX)}):
        pooled = cache(partial(_vgg_pooled, setup, network, side_px))
        for layers, pooling in product(LAYERS, POOLINGS):
            settings = {"layers": list(layers), "pooling": pooling, "size_px": side_px}
            features_of = partial(_concatenated, pooled, layers, POOLINGS[pooling])
            yield from _ridges(setup, settings, features_of)


def _concatenated(pooled: Callable, layers: tuple[str, ...], kept: slice, split: str) -> Tensor:
    """The kept poolings of several layers of VGG-16, one row per image, (N, D)."""
    return torch.cat([pooled(split)[layer][:, kept].flatten(1) for layer in layers], dim=1)


def _vgg_pooled(setup: Setup, network: VGG16Features, side_px: int, split: str) -> dict:
    """The `vgg_features` of a split at a size; for train also those of the mirrored images."""
    packed, parts = setup.packed[split], []
    mirrored = (False, True) if split == "train" else (False,)
    batches = list(product(mirrored, torch.arange(len(packed)).split(BATCH_SIZE)))
    for mirror, rows in job.progress(batches, f"VGG-16 on {split}, {side_px} px", leave=False):
        images, _ = packed.squares(rows, setup.args.image_size, setup.device)
        images = scaled(images.flip(3) if mirror else images, side_px)
        features = vgg_features(network, images)
        parts.append({tap: pooled.cpu() for tap, pooled in features.items()})
    return {tap: torch.cat([part[tap] for part in parts]) for tap in TAPS}


def scaled(images: Tensor, side_px: int) -> Tensor:
    """Float images of the size that VGG-16 sees, scaled (bicubic) if they have another."""
    if images.shape[-1] == side_px:
        return images
    options = {"mode": "bicubic", "antialias": True}
    return functional.interpolate(images, (side_px, side_px), **options).clamp(0, 1)
