"""How a network is trained: the flags that problems share, and the recipe made from them."""

import argparse
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path

from common import cli
from common.data.augment import Augmentation
from common.job import say
from common.training.precision import PRECISIONS

EVALUATIONS = 30  # on val in a run, or up to 59: one costs much of an epoch in a small data set


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; runs with equal recipes, data and networks are equal."""

    epochs: int
    batch_size: int
    image_size_px: int
    learning_rate: float
    optimizer: str = "adamw"
    schedule: str = "cosine"  # after warm-up; or "constant"
    weight_decay: float = 0.05
    warmup_epochs: float = 5
    label_smoothing: float = 0.1
    ema_decay: float = 0.99
    clip_norm: float = 0
    precision: str = "fp32"
    compile: bool = False
    deterministic: bool = False
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    stages: int = 1
    first_strength: float = 1
    first_size_px: int = 0  # 0: image_size_px
    val_interval: int = 1  # epochs
    solve_head: bool = False

    def as_dict(self) -> dict:
        """The recipe as plain values, for checkpoints and results."""
        values = dataclasses.asdict(self)
        augmentation = values.pop("augmentation")
        # Earlier versions did these in another way, so that their runs are not equal to these.
        values["rate_at"] = "middle of the step"
        if augmentation["randaugment"]:
            values["randaugment_by"] = "torchvision"
        else:  # earlier runs lack this entry
            del augmentation["randaugment"]
        if self.ema_decay:
            values["batch_norm_of_average"] = "recomputed"
        for name, value in (("val_interval", 1), ("solve_head", False)):  # earlier runs lack these
            if values[name] == value:
                del values[name]
        if self.stages == 1:  # these then have no effect, and earlier runs lack them
            for name in ("stages", "first_strength", "first_size_px"):
                del values[name]
        return {**values, **augmentation}

    def evaluates_after(self, epoch: int) -> bool:
        """Whether val is evaluated after an epoch (from 0); it always is after the last one."""
        return (self.epochs - 1 - epoch) % self.val_interval == 0

    def strength_at(self, epoch: int) -> float:
        """The strength of regularisation in an epoch: from `first_strength` to 1 in `stages`."""
        return self.first_strength + (1 - self.first_strength) * self._progress(epoch)

    def _progress(self, epoch: int) -> float:
        stages = min(self.stages, self.epochs)  # so that the last epoch has full strength
        if stages == 1:
            return 1
        return min(epoch * stages // self.epochs, stages - 1) / (stages - 1)

    def at(self, epoch: int) -> "Recipe":
        """The recipe of an epoch: size and augmentation grow (Tan & Le 2021, section 4)."""
        if self.stages == 1:
            return self
        strength, least_px = self.strength_at(epoch), self.first_size_px or self.image_size_px
        grown_px = least_px + (self.image_size_px - least_px) * self._progress(epoch)
        varied = dataclasses.replace(
            self.augmentation,
            crop_area_min=1 - strength * (1 - self.augmentation.crop_area_min),
            jitter=strength * self.augmentation.jitter,
            cutmix_prob=strength * self.augmentation.cutmix_prob,
            randaugment=strength * self.augmentation.randaugment,
        )
        return dataclasses.replace(self, image_size_px=round(grown_px), augmentation=varied)

    def learning_rate_at(self, epoch: float) -> float:
        """Linear warm-up, then cosine decay to 0 (Loshchilov & Hutter 2017) or a constant rate.

        `epoch` is a fraction, that of the step's middle: for the first step half a step.
        """
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        if self.schedule == "constant":
            return self.learning_rate
        left = (epoch - self.warmup_epochs) / (self.epochs - self.warmup_epochs)
        return self.learning_rate * (1 + math.cos(math.pi * min(1.0, left))) / 2


def add_flags(parser: cli.Parser) -> None:
    """Add the training loop's flags; a problem sets its own defaults with `set_defaults`."""
    add = parser.add
    cache = "folder for the cache of decoded images"
    add("--cache", type=cli.path, default=Path("data/cache"), help=cache)
    bad = "leave out bad images and list them (default: stop)"
    add("--skip-bad", action="store_true", help=bad)
    add("--image-size", type=cli.at_least(32, 2048), default=224, help="side of the input in px")
    add("--epochs", type=cli.positive, default=16, help="passes over the training images")
    add("--batch-size", type=cli.at_least(2), default=32, help="images per step, 2 or more")
    often = "epochs from one evaluation on val to the next (default: a thirtieth of --epochs, >= 1)"
    add("--val-interval", type=cli.positive, metavar="N", help=often)
    add("--optimizer", choices=("adamw", "sgd"), default="adamw", help="sgd: Nesterov momentum 0.9")
    add("--lr", type=cli.non_negative, default=1e-3, help="peak learning rate")
    add("--weight-decay", type=cli.non_negative, default=0.05, help="none for norms and biases")
    add("--warmup-epochs", type=cli.non_negative, default=5, help="epochs of linear warm-up")
    add("--label-smoothing", type=cli.fraction, default=0.1, help="label smoothing, 0 to 1")
    add("--ema", type=cli.fraction, default=0.99, help="decay of the weights' average; 0: none")
    add("--clip-norm", type=cli.non_negative, default=0.0, help="max. gradient norm; 0: no limit")
    add("--crop-area", type=cli.fraction, default=0.25, help="smallest area of a crop, 0 to 1")
    add("--jitter", type=cli.fraction, default=0.1, help="brightness, contrast, saturation jitter")
    add("--cutmix", type=cli.fraction, default=0.5, help="probability of cutmix per image")
    kinds = "RandAugment: magnitude of two random operations per image, 0 to 10; 0: none"
    add("--randaugment", type=int, choices=range(11), metavar="M", default=0, help=kinds)
    steps = "stages in which image size and regularisation grow over the epochs; 1: no growth"
    add("--stages", type=cli.at_least(1, 100), default=1, help=steps)
    first = "image size in px in the first of --stages (default: half, at least 32)"
    add("--first-size", type=cli.whole, help=first)
    strength = "strength of augmentation and dropout in the first of --stages (the last has 1)"
    add("--first-strength", type=cli.fraction, default=0.5, help=strength)
    both = "on test, average the logits of each image and its mirror image (default: no)"
    add("--flip-test", action="store_true", help=both)
    solved = "after training, solve the last layer anew by ridge regression (default: no)"
    add("--solve-head", action="store_true", help=solved)
    precisions, auto = ("auto", *PRECISIONS), "auto: the fastest one, measured on this device"
    add("--precision", choices=precisions, default="auto", help=auto)
    add("--compile", action="store_true", help="use torch.compile for the network (default: no)")
    add("--deterministic", action="store_true", help="deterministic GPU kernels; prints their cost")
    add("--tensorboard", action="store_true", help="also write logs for TensorBoard (default: no)")
    gpus = "number of GPUs for DataParallel in one process; 0: use --device"
    add("--gpus", type=cli.whole, default=0, metavar="N", help=gpus)
    add("--seeds", type=cli.at_least(1, 1000), default=1, help="number of runs, from seed SEED on")
    jobs = "trainings at a time, which share the GPU or the CPU; on two cores 2 is fastest"
    add("--jobs", type=cli.at_least(1, 64), default=1, help=jobs)
    add("--fresh", action="store_true", help="train anew, ignoring earlier runs (default: no)")
    often = "seconds between checkpoints, besides one per evaluation on val"
    add("--checkpoint-seconds", type=cli.non_negative, default=300.0, help=often)


def recipe_of(args: argparse.Namespace, precision: str) -> Recipe:
    """The recipe that the flags of `add_flags` ask for."""
    warmup_epochs = args.warmup_epochs
    if warmup_epochs >= args.epochs:
        warmup_epochs = args.epochs / 5
        say(f"--warmup-epochs shortened to {warmup_epochs:g}, a fifth of --epochs {args.epochs}")
    named = {f.name: getattr(args, f.name) for f in dataclasses.fields(Recipe) if f.name in args}
    others = {
        "image_size_px": args.image_size,
        "learning_rate": args.lr,
        "warmup_epochs": warmup_epochs,
        "ema_decay": args.ema,
        "precision": precision,
        "augmentation": Augmentation(
            args.crop_area, args.jitter, args.cutmix, randaugment=args.randaugment
        ),
        "first_size_px": args.first_size or max(min(32, args.image_size), args.image_size // 2),
        "val_interval": args.val_interval or max(1, args.epochs // EVALUATIONS),
    }
    return Recipe(**named | others)  # the other fields have flags of the same name
