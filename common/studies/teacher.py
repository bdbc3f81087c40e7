"""A teacher: VGG-16's features of the same views that a network is trained on, for it to guess.

The features with which the baselines classify say more about a picture than its label. A network
with a teacher learns, besides the label, to guess these features from its own pooled ones. Both see
the same crop in the same colours (Beyer et al. 2022, "consistent teaching"). Each image has --views
augmented views, whose features are computed once.
"""

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from common import files, job
from common.data import streams
from common.data.augment import Augmentation, Draws
from common.errors import UserError
from common.networks import baselines as instrument
from common.networks.efficientnet import Taught
from common.networks.vgg import VGG16Features
from common.networks.weights import load_vgg16
from common.studies.baselines import POOLINGS, VGG_RIDGE, enlarged, kept_baselines
from common.training import parallel
from common.training.run import save_checkpoint
from common.training.runs import Setup

BATCH_SIZE = 64  # of a pass through VGG-16
VARIED = ("crop_area_min", "jitter", "randaugment")  # the fields of `Augmentation` for views


@dataclass(eq=False)
class Teacher:
    """The features that a run learns to guess, and their origin.

    about: what the features depend on, part of a run's identity: seed, views, data, images,
    image_size_px, crop_area_min, jitter, randaugment, layers, pooling, size_px (VGG-16's input) and
    weights (SHA-256). classifier: val_top1 and test_top1 of the baselines' classifier, and seconds,
    VGG-16's passes. features: square roots of each view's features, fp16 (views, images, F).
    """

    about: dict
    classifier: dict
    features: Tensor
    loss_weight = 8  # of the features' mean square error; that of the cross-entropy is 1

    def __post_init__(self):
        first = self.features[0].float()
        # The lower limit is for channels that are dead on these pictures.
        self.mean, self.deviation = first.mean(0), first.std(0).clamp(min=1e-3)

    def views(
        self, images: Tensor, indexes: Tensor, epoch: int, size_px: int
    ) -> tuple[Tensor, Tensor]:
        """An epoch's views of packed images, and the teacher's features of these views.

        Args:
            images: uint8 (N, 3, S, S).
            indexes: int64 (N,), which of the training images they are.
            epoch: from 0; if there are fewer views than epochs, the views repeat in their order.
            size_px: side of the views. The teacher always sees the run's full image size; if a
                run's images grow, it sees the same crops more sharply at first.

        Returns:
            Views, float (N, 3, size_px, size_px) in [0, 1], and standardised features (N, F).
        """
        view = epoch % self.about["views"]
        standard = (self.features[view, indexes].float() - self.mean) / self.deviation
        return view_of(self.about, images, indexes, view, size_px), standard.to(images.device)

    def taught(self, network: nn.Module) -> Taught:
        """The network with an output layer that also guesses the features."""
        return Taught(network, len(self.mean))


def view_of(about: dict, images: Tensor, indexes: Tensor, view: int, size_px: int) -> Tensor:
    """One view of packed images; it does not depend on the other images in the batch."""
    key = (about["seed"], streams.VIEWS, view, 0, about["images"])
    draws = Draws(*key, images.device, rows=indexes)
    varied = Augmentation(**{name: about[name] for name in VARIED})
    return varied.vary(images, size_px, draws)


def seen(network: VGG16Features, about: dict, views: Tensor) -> Tensor:
    """Square roots of VGG-16's features of views, with the baselines' settings: fp16 (N, F)."""
    pooled = instrument.vgg_features(network, enlarged(views, about["size_px"]))
    kept = POOLINGS[about["pooling"]]
    return instrument.side_by_side(pooled, about["layers"], kept).sqrt().half()


def describe(setup: Setup, trained: list[dict]) -> dict | None:
    """The results' entry on the teacher, or None without a teacher.

    Returns:
        `Teacher`'s about and classifier in one, loss_weight, and kept_share: the students' mean
        test top-1 as a share of the teacher's.
    """
    if (made := teacher(setup)) is None:
        return None
    top1 = sum(run["test_top1"] for run in trained) / len(trained)
    about = {**made.about, **made.classifier, "loss_weight": made.loss_weight}
    return {**about, "kept_share": top1 / made.classifier["test_top1"]}


@cache
def teacher(setup: Setup) -> Teacher | None:
    """The teacher that --teacher asks for, kept in --cache, or None without the flag.

    If its file is missing, the first process of a job makes it.
    """
    if setup.args.teacher is None:
        return None
    path = setup.args.cache / f"teacher-{files.digest_of(_asked(setup))}.pt"
    parallel.broadcast(lambda: None if path.exists() else _make(path, setup))
    try:
        return Teacher(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise anything
        damage = f"{path}: damaged ({type(error).__name__}); delete it, and it is made again"
        raise UserError(damage) from None


def _asked(setup: Setup) -> dict:
    """The part of a teacher's `about` that flags and data determine."""
    train = setup.packed["train"]
    return {
        "seed": setup.args.seed,
        "views": setup.args.views,
        "data": train.source.fingerprint(),
        "images": len(train),
        "image_size_px": setup.args.image_size,
        **{name: getattr(setup.recipe.augmentation, name) for name in VARIED},
    }


def _make(path: Path, setup: Setup) -> None:
    """Compute the views' features with VGG-16 and the baselines' settings; write their file."""
    weights = load_vgg16("auto", seed=0, want_lpips=False)
    row = kept_baselines(setup)[VGG_RIDGE]
    chosen = {key: row["chosen"][key] for key in ("layers", "pooling", "size_px")}
    about = {**_asked(setup), **chosen, "weights": weights.sha256}
    network = VGG16Features(weights, chosen["layers"]).to(setup.device)
    start, train = time.perf_counter(), setup.packed["train"]
    views, steps = range(about["views"]), torch.arange(len(train)).split(BATCH_SIZE)
    features = []
    for view in job.progress(views, "VGG-16 on the views", leave=False):
        for rows in steps:
            images = train.batch(rows, setup.device)[0]
            features.append(
                seen(network, about, view_of(about, images, rows, view, about["image_size_px"]))
            )
    seconds = time.perf_counter() - start
    classifier = {"val_top1": row["val_top1"], "test_top1": row["test_top1"], "seconds": seconds}
    stacked = torch.cat(features).cpu().view(len(views), len(train), -1)
    files.make_folder(path.parent, "--cache")
    save_checkpoint(path, {"about": about, "classifier": classifier, "features": stacked})
    job.say(f"teacher: {len(views)} views of {len(train):,} images, {seconds:.0f} s, in {path}")
