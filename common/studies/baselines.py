"""What a network has to beat on a problem's data, without any training of a network."""

import sys
import time
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional

from common import files, job
from common.data.augment import centre_square
from common.errors import UserError
from common.networks import baselines as instrument
from common.networks.vgg import VGG16Features
from common.networks.weights import load_vgg16
from common.reporting.statistics import wilson_interval
from common.training import parallel
from common.training.evaluation import per_class
from common.training.runs import Setup

COLOUR_NEIGHBOUR, VGG_RIDGE = "colour, nearest neighbour", "VGG-16, ridge"
STRENGTHS = (30, 100, 300, 1000, 3000, 10_000, 30_000)  # of ridge regression
TAPS = ("relu2_2", "relu3_3", "relu4_3", "relu5_3")
LAYERS = (*((tap,) for tap in TAPS[1:]), TAPS[1:3], TAPS[:3])  # one, or several side by side
POOLINGS = {"mean": slice(0, 1), "mean and maximum": slice(0, 2)}
SIDE_PX_MAX, BATCH_SIZE = 128, 64  # of what VGG-16 sees
VERSION = 1  # of how all this is computed, for what is kept

Features = tuple[dict, Callable[[str], Tensor]]  # what is chosen with them; those of a split


def baselines(setup: Setup) -> dict[str, dict]:
    """Classify val and test by chance, by colours, edges and VGG-16's features.

    Settings are chosen on val, and test is looked at once, with those. Without VGG-16's weights its
    row is left out, and a line says so. The first process of a job computes for all.

    Returns:
        By name: val_top1, test_top1, its 95 % interval test_top1_low and test_top1_high,
        test_per_class (the mean over classes of the accuracy within the class; all in per cent),
        seconds, and chosen (the settings, by name).
    """
    _ = setup.packed  # on all processes, since they wait for each other there
    rows = parallel.broadcast(partial(kept_baselines, setup))
    for name, row in rows.items():
        chosen = "".join(f", {key} {value}" for key, value in row["chosen"].items())
        job.say(f"{name}: {row['val_top1']:.2f} % of val, {row['test_top1']:.2f} % of test{chosen}")
    return rows


def kept_baselines(setup: Setup) -> dict[str, dict]:
    """`baselines` from a file in the cache, which the first call writes: they take minutes."""
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
            files.save_json(files.make_folder(path.parent) / path.name, rows)
    return rows


def _baselines(setup: Setup) -> dict[str, dict]:
    measures = ("val_top1", "test_top1", "test_top1_low", "test_top1_high", "test_per_class")
    chance = dict.fromkeys(measures, 100 / setup.classes)
    rows = {"chance": {**chance, "seconds": 0.0, "chosen": {}}}
    for name, features in (("colour", _colours), ("HOG", _edges)):
        start = time.perf_counter()
        by_split = {split: features(setup, split) for split in setup.packed}
        seconds = time.perf_counter() - start
        for way in CLASSIFIERS:
            rows[f"{name}, {way}"] = _row(setup, [({}, by_split.get)], way, seconds)
    try:
        weights = load_vgg16("auto", seed=0, want_lpips=False)
    except UserError as error:
        job.say(f"{VGG_RIDGE}: left out: {error}", file=sys.stderr)
    else:
        network = VGG16Features(weights, list(TAPS)).to(setup.device)
        rows[VGG_RIDGE] = _row(setup, _vgg_candidates(setup, network), "ridge")
    return rows


def _row(setup: Setup, candidates: Iterable[Features], way: str, seconds: float = 0.0) -> dict:
    """What val chooses, the first of equals, with test looked at; `seconds` were spent before."""
    start, packed, best = time.perf_counter(), setup.packed, {"val_top1": -1.0}
    for (about, features_of), (strength, classify) in product(candidates, CLASSIFIERS[way]):
        answers_of = partial(_answers, packed, features_of, classify)
        top1 = 100 * (answers_of("val") == packed["val"].labels).double().mean().item()
        if top1 > best["val_top1"]:
            best, chosen = {"val_top1": top1, "chosen": about | strength}, answers_of
        if top1 == 100:  # which no other can beat
            break
    labels = packed["test"].labels
    right = chosen("test") == labels
    low, high = wilson_interval(int(right.sum()), len(right))
    return {
        **best,
        "test_top1": 100 * right.double().mean().item(),
        "test_top1_low": 100 * low,
        "test_top1_high": 100 * high,
        "test_per_class": per_class(labels, right),
        "seconds": seconds + time.perf_counter() - start,
    }


def _answers(packed: dict, features_of: Callable, classify: Callable, split: str) -> Tensor:
    train, labels = features_of("train"), packed["train"].labels
    labels = labels.repeat(len(train) // len(labels))  # with mirrored copies behind, or without
    return classify(train, labels, features_of(split))


# ----------------------------------------------------------------------------------- classifiers
def _nearest_label(train: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    return labels[instrument.nearest(queries, train)]


def _ridge_of_roots(train: Tensor, labels: Tensor, queries: Tensor, strength: float) -> Tensor:
    # Roots, since few counts and responses are large and most are small.
    return instrument.ridge(train.sqrt(), labels, queries.sqrt(), strength)


CLASSIFIERS = {
    "nearest neighbour": [({}, _nearest_label)],
    "ridge": [({"strength": s}, partial(_ridge_of_roots, strength=s)) for s in STRENGTHS],
}


# --------------------------------------------------------------------------- features of a split
def _colours(setup: Setup, split: str) -> Tensor:
    return instrument.colour_histograms(setup.packed[split].images, setup.args.image_size)


def _edges(setup: Setup, split: str) -> Tensor:
    """HOG features, of train those of its mirrored images too."""
    images = setup.packed[split].images
    views = [images, images[:, :, ::-1]] if split == "train" else [images]
    return torch.cat([instrument.hog_features(view, setup.args.image_size) for view in views])


def _vgg_candidates(setup: Setup, network: VGG16Features) -> Iterable[Features]:
    """The features of LAYERS by each pooling, at the pictures' size and half as large again."""
    size_px = setup.args.image_size
    for side_px in sorted({min(size_px, SIDE_PX_MAX), min(size_px * 3 // 2, SIDE_PX_MAX)}):
        pooled = cache(partial(_vgg_pooled, setup, network, side_px))
        for layers, (pooling, kept) in product(LAYERS, POOLINGS.items()):
            about = {"layers": list(layers), "pooling": pooling, "size_px": side_px}
            yield about, partial(_side_by_side, pooled, layers, kept)


def _side_by_side(pooled: Callable, layers: tuple[str, ...], kept: slice, split: str) -> Tensor:
    return instrument.side_by_side(pooled(split), layers, kept)


def _vgg_pooled(setup: Setup, network: VGG16Features, side_px: int, split: str) -> dict:
    """A split's `vgg_features` at a size, of train those of its mirrored images too."""
    packed, parts = setup.packed[split], []
    mirrored = (False, True) if split == "train" else (False,)
    batches = list(product(mirrored, torch.arange(len(packed)).split(BATCH_SIZE)))
    for mirror, rows in job.progress(batches, f"VGG-16 of {split}, {side_px} px", leave=False):
        images = centre_square(packed.batch(rows, setup.device)[0], setup.args.image_size)
        images = enlarged(images.flip(3) if mirror else images, side_px)
        features = instrument.vgg_features(network, images)
        parts.append({tap: pooled.cpu() for tap, pooled in features.items()})
    return {tap: torch.cat([part[tap] for part in parts]) for tap in TAPS}


def enlarged(images: Tensor, side_px: int) -> Tensor:
    """Float images as VGG-16 sees them, bicubic where their size is another."""
    if images.shape[-1] == side_px:
        return images
    options = {"mode": "bicubic", "antialias": True}
    return functional.interpolate(images, (side_px, side_px), **options).clamp(0, 1)
