"""Why a training diverges: forecast before its first step, and changed in one thing at a time."""

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn

from common import job
from common.data.augment import centre_square
from common.networks import doctor
from common.networks.doctor import Followed
from common.training.convolutions import with_fast_convolutions
from common.training.kept import Kept
from common.training.recipe import Recipe
from common.training.runs import Setup

REPORT_RECIPE = {  # He et al. 2016's, as the report does not print its own
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "schedule": "constant",
    "weight_decay": 1e-4,
    "warmup_epochs": 0,
    "label_smoothing": 0,
    "ema_decay": 0,
    "clip_norm": 0,
    "precision": "fp32",
    "compile": False,
}


def first_images(setup: Setup) -> Tensor:
    """A batch of train's images by the seed, not varied: what forecasts are made with."""
    args, train = setup.args, setup.packed["train"]
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(args.seed))
    packed, _ = train.batch(order[: args.batch_size], setup.device)
    return centre_square(packed, args.image_size)


def follow(
    setup: Setup,
    kept: Kept,
    name: str,
    build: Callable[[], nn.Module],
    recipe: Recipe,
    watch: bool = False,
) -> Followed:
    """Train for --steps or until a value that counts is not finite, and say how it went.

    Kept under its name, so that a call that was stopped goes on with those that it has not done.
    """

    def measure() -> dict:
        trained = with_fast_convolutions(build(), setup.device)
        train, steps = setup.packed["train"], setup.args.steps
        return asdict(doctor.follow(trained, train, recipe, setup.device, steps, watch))

    about = {"name": name, "recipe": recipe.as_dict(), "steps": setup.args.steps, "watch": watch}
    followed = Followed(**kept.get(name, about, measure))
    outcome = f"diverges in step {followed.last_step}" if followed.divergence else "finite"
    dead = f", dead from {followed.dead['module']} on" if followed.dead else ""
    job.say(f"{name}: {outcome}{dead}, {followed.seconds:.0f} s")
    return followed


def follow_all(
    setup: Setup,
    kept: Kept,
    trainings: Mapping[str, tuple[Callable[[], nn.Module], Recipe]],
    watched: tuple[str, ...] = (),
) -> dict[str, Followed]:
    """Follow trainings by name, each (its new network's function, its recipe)."""
    return {
        name: follow(setup, kept, name, build, recipe, watch=name in watched)
        for name, (build, recipe) in trainings.items()
    }


def kept_in(setup: Setup, **about) -> Kept:
    """The kept measurements of a problem's folder, of this data, device, job, width and seed."""
    args = setup.args
    data = {split: part.source.fingerprint() for split, part in setup.packed.items()}
    common = {"data": data, "device": setup.device.type, "seed": args.seed, "width": args.width}
    common["processes"] = job.size()  # each has batch norms of its own
    size = {"image_size_px": args.image_size, "classes": setup.classes}
    return Kept(setup.folder / "kept", {**common, **size, **about}, args.fresh)
