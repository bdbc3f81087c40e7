"""Numbers: what is not finite, rates of 10^9, black images, tiny classes, labels out of range."""

import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import nn

from common.data import sets
from tests.faults import equal, tiny
from tests.faults.harness import Call, Lost, Try, ranks, run
from tests.faults.reference import CALLS, reference

STEPS = (1, 2, 3, 4)  # of a run, in which a value is spoilt


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    del rng
    made = []
    for where in ("forward", "gradient"):
        for step in STEPS[1:2] if quick else STEPS:
            made.append(Try(f"NaN in the {where}", not_finite, (where, step)))
    if quick:
        return made
    for where in ("forward", "gradient"):
        for rank in ("0", "1"):
            for step in STEPS[:3]:
                how = (where, rank, step, step == 1)
                name = f"NaN in one rank's {where}{' (no torchrun)' * (step == 1)}"
                made.append(Try(name, not_finite_in_rank, how))
    made += [Try("extreme rates and shares", extreme, (part, flags)) for part, flags in EXTREME]
    made += [Try("small data", small, (script, flags)) for script, flags in SMALL]
    made += [Try("black images", black, (part,)) for part in ("1.1", "1.2", "3.1", "3.4")]
    made += [Try("labels out of range", labels, (shift,)) for shift in (100, -100, 1)]
    made += [
        Try("NaN in a file of weights", bad_init, (flag, what)) for flag in INITS for what in BAD
    ]
    return made


# ------------------------------------------------------------------------------- values not finite


def spoil(where: str, step: int, rank: str | None = None) -> None:
    """From a training step on, let the classifier put out NaN, or get it as its gradient."""
    if rank is not None and os.environ.get("RANK") != rank:
        return
    seen = []

    def hook(module: nn.Module, _inputs: tuple, output: torch.Tensor):
        if not module.training or not isinstance(module, nn.Linear):
            return None
        seen.append(1)
        if len(seen) < step:
            return None
        if where == "forward":
            return output * math.nan
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.nan)
        return None

    nn.modules.module.register_module_forward_hook(hook)


def not_finite(folder: Path, where: str, step: int) -> None:
    """Stops in one line that names the step and the module; afterwards it goes on exactly."""
    call = CALLS["2.2"]
    wanted, _, _ = reference(call)
    seen = run(replace(call, before=partial(spoil, where, step)), folder)
    seen.refuses("epoch", "step")
    run(call, folder, "again").completes()
    equal.ask(wanted, equal.digest(folder / "out"), call.text)


def not_finite_in_rank(folder: Path, where: str, rank: str, step: int, by_hand: bool) -> None:
    """In one process of two: both stop, exit 2, with one line between them."""
    call = replace(CALLS["2.2"], before=partial(spoil, where, step, rank))
    seen = [process.seen(limit_s=45) for process in ranks(call, folder, by_hand=by_hand)]
    lines = "".join(each.err for each in seen).splitlines()
    if [each.code for each in seen] != [2, 2] or len(lines) != 1 or "step" not in lines[0]:
        raise Lost(
            f"both exit 2, one line | {call.text}, NaN in rank {rank}'s {where} at step {step}"
            f" | exits {[each.code for each in seen]}; stderr: {lines[:6]}"
        )


EXTREME = [
    *(
        ("2.2", (flag, 1e9))
        for flag in ("--lr", "--weight-decay", "--clip-norm", "--warmup-epochs")
    ),
    *(("2.2", (flag, 1)) for flag in ("--label-smoothing", "--ema", "--crop-area", "--jitter")),
    *(
        ("2.2", (flag, 0))
        for flag in ("--lr", "--weight-decay", "--ema", "--crop-area", "--jitter")
    ),
    *(("2.2", (flag, 1e-320)) for flag in ("--lr", "--clip-norm", "--ema")),
    ("2.2", ("--lr", 1e300)),
    ("2.2", ("--lr", 1e9, "--warmup-epochs", 0)),
    ("2.2", ("--lr", 1e9, "--optimizer", "sgd", "--warmup-epochs", 0)),
    ("2.2", ("--weight-decay", 1e300)),
    ("2.2", ("--weight-decay", 1e9, "--optimizer", "sgd", "--warmup-epochs", 0)),
    ("2.2", ("--cutmix", 1, "--jitter", 1, "--crop-area", 0)),
    ("3.1 3.4", ("--lr", 1e9, "--warmup-epochs", 0)),
    ("3.1 3.4", ("--weight-decay", 1e9, "--warmup-epochs", 0)),
    ("3.1 3.4", ("--residual", "sum", "--no-zero-init-residual", "--lr", 10)),
    ("1.1 to 1.3", ("--sigma", 1e300)),
    ("1.1 to 1.3", ("--sigma", 0)),
    ("1.1 to 1.3", ("--sigma", 1e-320)),
    ("1.1 to 1.3", ("--shift", 0)),
    ("1.1 to 1.3", ("--shift", 1e-300)),
    ("1.1 to 1.3", ("--shift", 47.999)),
]


def _ask_finite(folder: Path, call: Call) -> None:
    """Ask that weights are finite wherever they were saved as a result."""
    for path in folder.glob("out/*/runs/*/best.pt"):
        network = torch.load(path, map_location="cpu", weights_only=True)["network"]
        for name, tensor in network.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise Lost(f"finite weights, or a stop | {call.text} | {path.name}: {name} is not")


def extreme(folder: Path, part: str, flags: tuple) -> None:
    """Trains to finite weights and losses, or stops with its cause in one line."""
    tiny.write_photos(folder / "photos")
    call = replace(CALLS[part], argv=(*CALLS[part].argv, *flags))
    if run(call, folder).ends_well().code == 0:
        _ask_finite(folder, call)
        for path in folder.rglob("metrics.jsonl"):
            if "null" in path.read_text():
                raise Lost(f"finite losses, or a stop | {call.text} | {path.read_text()[:300]}")


SMALL = [
    ("problem2_flowers", ("--images-per-class", 1)),
    ("problem2_flowers", ("--images-per-class", 1, "--batch-size", 2)),
    ("problem2_flowers", ("--images-per-class", 1, "--classes", 7)),
    ("problem2_flowers", ("--images-per-class", 1, "--classes", 2)),
    ("problem2_flowers", ("--classes", 1)),
    ("problem2_flowers", ("--classes", 102, "--images-per-class", 1, "--batch-size", 60)),
    ("problem2_flowers", ("--images-per-class", 13, "--classes", 3, "--batch-size", 38)),
    ("problem3_resnet36", ("--per-class", 1)),
    ("problem3_resnet36", ("--per-class", 3)),
    ("problem3_resnet36", ("--per-class", 3, "--batch-size", 2)),
    ("problem3_resnet36", ("--classes", 2, "--per-class", 3)),
    ("problem3_resnet36", ("--classes", 1)),
]


def small(folder: Path, script: str, flags: tuple) -> None:
    """One image a class, a last batch of one: trains, or says in one line why it can't."""
    part = "2.2" if script == "problem2_flowers" else "3.1 3.4"
    call = replace(CALLS[part], argv=(*CALLS[part].argv, *flags))
    run(call, folder).ends_well()


def _write_black(place: Path, count: int) -> None:
    place.mkdir(parents=True)
    for number in range(count):
        about = PngImagePlugin.PngInfo()
        about.add_text("number", f"{place.name} {number}")  # else all would be one file
        Image.new("RGB", (48, 48)).save(place / f"{number}.png", pnginfo=about)


def black(folder: Path, part: str) -> None:
    """Images of one colour: measured or trained on, or refused in a line."""
    for name in ("ants", "bees"):
        _write_black(folder / "classes" / name, 6)
    if part.startswith("1"):
        _write_black(folder / "photos", 3)
        call = Call("problem1_perceptual", (part, *tiny.PHOTOS))
    else:
        flags = [word if word != "synthetic" else "classes" for word in tiny.FOLDERS]
        flags[flags.index("--classes") + 1] = 2
        call = Call("problem3_resnet36", (part, *flags, "--epochs", 1, "--steps", 2))
    if run(call, folder).ends_well().code == 0:
        _ask_finite(folder, call)


def move_labels(shift: int) -> None:
    """Let drawn images have other labels than there are classes."""
    make = sets.DrawnSet.__init__

    def moved(self, *args, **options):
        make(self, *args, **options)
        self.labels = self.labels + shift

    sets.DrawnSet.__init__ = moved


def labels(folder: Path, shift: int) -> None:
    """Labels that no class has: stops in one line before it trains."""
    call = replace(CALLS["2.2"], before=partial(move_labels, shift))
    run(call, folder).refuses("label")


# ------------------------------------------------------------------------------ files of weights

INITS = {"--init": "2.2", "--from-narrow": "2.3"}
BAD: dict[str, Callable[[torch.Tensor], None]] = {
    "NaN": lambda tensor: tensor[(0,) * tensor.ndim].fill_(math.nan),
    "infinity": lambda tensor: tensor[(0,) * tensor.ndim].fill_(math.inf),
}
SPOILT = ("features.0.0.weight", "features.1.0.block.0.1.running_var", "classifier.1.bias")


def bad_init(folder: Path, flag: str, what: str) -> None:
    """A value that is not finite in a file of weights: refused, with the file and the tensor."""
    _, _, base = reference(CALLS["2.2"])
    best = torch.load(next(base.glob("out/*/runs/*/best.pt")), weights_only=True)
    for name in SPOILT:
        state = {
            key.removeprefix("network."): value.clone() for key, value in best["network"].items()
        }
        BAD[what](state[name])
        torch.save(state, folder / "weights.pt")
        argv = (INITS[flag], *tiny.TRAINED, flag, "weights.pt")
        run(Call("problem2_flowers", argv), folder).refuses("weights.pt")
