"""The one training loop: fit, evaluate, checkpoint, resume.

All randomness is a function of (seed, epoch, step): the order of the images, their augmentation,
dropout and stochastic depth. So a checkpoint holds no generator state, and a run that was stopped
and went on ends with the same weights, bit for bit, as one that was not (on a CPU; on a GPU as far
as cuDNN's kernels are deterministic).
"""

import contextlib
import itertools
import json
import math
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from common import cli, parallel
from common.augment import Draws, centre_square, mixed_seed
from common.cli import UserError
from common.data import Packed
from common.recipe import Recipe, autocast

GO_ON = "the run is saved, the same command goes on with it"
ORDER, STEP = 0, 1  # what a seed is for: no two uses share a stream


class Float32Conv2d(nn.Conv2d):
    """A convolution that stays in fp32 under autocast."""

    def forward(self, maps: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            return super().forward(maps.float())


def keep_slow_convolutions_in_fp32(network: nn.Module) -> None:
    """Turn the convolutions whose bf16 gradient is slow on a CPU into `Float32Conv2d`.

    oneDNN has no fast kernel for depthwise and strided ones with few channels a group: in a step of
    EfficientNetV2-S on 64 images of 64 px the stem alone takes 514 ms in bf16, 13 ms in fp32. Names
    and weights stay as they are.
    """
    for module in network.modules():
        special = type(module) is nn.Conv2d and (module.groups > 1 or max(module.stride) > 1)
        if special and module.in_channels // module.groups < 32:
            module.__class__ = Float32Conv2d


class Run:
    """A network in training: everything that a step changes, and that a checkpoint holds."""

    def __init__(self, network: nn.Module, recipe: Recipe, device: torch.device, gpus: int = 0):
        self.recipe, self.device = recipe, device
        self.network = network.to(device, memory_format=torch.channels_last)
        if device.type == "cpu" and recipe.precision == "bf16":
            keep_slow_convolutions_in_fp32(self.network)
        compiled = torch.compile(self.network) if recipe.compile else self.network
        self.forward = parallel.wrap(compiled, device, gpus)
        self.average = None
        if recipe.ema_decay:
            average = _warm_average(recipe.ema_decay)
            self.average = AveragedModel(self.network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = _make_optimizer(self.network, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.epoch = self.step = 0
        self.sums = _no_sums()
        self.history: list[dict] = []

    @property
    def evaluated(self) -> nn.Module:
        """The network whose accuracy counts: the averaged one where there is one."""
        return self.average.module if self.average else self.network

    @property
    def best(self) -> dict | None:
        """The epoch with the best val top-1, the first of equals."""
        return max(self.history, key=lambda row: row["val_top1"], default=None)

    def state_dict(self) -> dict:
        """Tensors and plain values alone."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict` of the same recipe and network."""
        self.network.load_state_dict(state["network"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.sums, self.history = state["sums"], state["history"]


def _no_sums() -> dict:
    return {"loss": 0.0, "top1": 0, "images": 0, "seconds": 0.0}


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Exponential moving average, its decay growing with the steps n: min(decay, (1+n) / (10+n)).

    A constant decay would keep the initial running variances of batch norm for long, and a deep
    network multiplies their error layer by layer: its average would be at chance for epochs.
    """

    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)

    return update


def _make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [one for one in network.parameters() if one.requires_grad]
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2]},
        # Norms and biases: pulling them to zero regularises nothing (He et al. 2019, section 3).
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    common = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **common)
    return torch.optim.AdamW(groups, **common, fused=True)


# ------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def evaluate(network: nn.Module, split: Packed, recipe: Recipe, device: torch.device) -> dict:
    """Mean cross-entropy, top-1 and top-5 in per cent, over every image of a split once.

    The central square is classified; the processes of a job share the images. Returns {"loss",
    "top1", "top5", "correct", "images"}.
    """
    was_training = network.training
    network.eval()
    loss, top1, top5 = 0.0, 0, 0
    for indexes in torch.arange(len(split))[parallel.share()].split(2 * recipe.batch_size):
        images, labels = split.batch(indexes, device)
        with autocast(recipe.precision, device):
            logits = network(centre_square(images, recipe.image_size_px))
        logits = logits.float()
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        top1 += int(hits[:, 0].sum())
        top5 += int(hits.sum())
    network.train(was_training)
    count = len(split)
    loss, top1, top5 = parallel.total([loss, top1, top5], device)
    return {
        "loss": loss / count,
        "top1": 100 * top1 / count,
        "top5": 100 * top5 / count,
        "correct": int(top1),
        "images": count,
    }


# --------------------------------------------------------------------------------------- training


def fit(
    network: nn.Module,
    train: Packed,
    val: Packed,
    recipe: Recipe,
    folder: Path,
    device: torch.device,
    about: dict,
    fresh: bool = False,
    checkpoint_seconds: float = 300,
    gpus: int = 0,
) -> list[dict]:
    """Train `network`, or go on where a run in `folder` stopped, and leave the best weights in it.

    `folder` gets last.pt (the whole run), best.pt (the weights with the best val top-1) and
    metrics.jsonl. `about` says what else makes this run this one (network, data); a run in
    `folder` that differs in it or in the recipe is not gone on with.

    Returns:
        One dict an epoch: epoch, learning_rate, train_loss, train_top1, val_loss, val_top1,
        val_top5, images_per_second, seconds, peak_memory_mib.

    Raises:
        UserError: another run's checkpoint, a loss or gradient that is not finite, or more
            processes than images.
    """
    cli.make_folder(folder)
    parallel.check_images(min(len(train), recipe.batch_size))
    check_steps(train, recipe)
    run = Run(network, recipe, device, gpus)
    identity = {**recipe.as_dict(), **about}
    if not fresh:
        _resume(run, folder / "last.pt", identity)
    save = Saver(run, folder, identity, checkpoint_seconds)
    with _stop_between_steps() as stopped:
        while run.epoch < recipe.epochs:
            train_one_epoch(run, train, save, stopped)
            _finish_epoch(run, val)
            save.epoch()
    parallel.wait()
    network.load_state_dict(load_checkpoint(folder / "best.pt", device)["network"])
    return run.history


def train_one_epoch(
    run: Run, train: Packed, save: "Saver", stopped: Callable[[], bool] = lambda: False
) -> None:
    """The rest of the run's epoch: every image once, in steps of nearly equal size."""
    name, total = f"epoch {run.epoch + 1}/{run.recipe.epochs}", steps_per_epoch(train, run.recipe)
    with cli.progress(total=total, initial=run.step, desc=name, leave=False) as bar:
        for _ in _steps_of_epoch(run, train):
            bar.update()
            if parallel.total([stopped()], run.device)[0]:
                save.now()
                raise KeyboardInterrupt(GO_ON)
            save.if_due()


def steps_per_epoch(train: Packed, recipe: Recipe) -> int:
    """How many steps see every image once."""
    return math.ceil(len(train) / recipe.batch_size)


def check_steps(train: Packed, recipe: Recipe) -> None:
    """Refuse steps of a single image, which batch norm can't train on.

    Raises:
        UserError: an epoch's images do not make steps of two or more.
    """
    if len(train) // steps_per_epoch(train, recipe) < 2:
        raise UserError(
            f"--batch-size {recipe.batch_size}: {len(train)} training images make a step of one,"
            " batch norm needs 2 or more; take a larger --batch-size or more images"
        )


def _steps_of_epoch(run: Run, train: Packed) -> Iterator[float]:
    """Take the rest of the epoch's steps, one each time that it is asked; yields their losses."""
    recipe = run.recipe
    order = torch.randperm(
        len(train),
        generator=torch.Generator().manual_seed(mixed_seed(recipe.seed, ORDER, run.epoch)),
    )
    steps = order.tensor_split(steps_per_epoch(train, recipe))
    run.network.train()
    while run.step < len(steps):
        start = time.perf_counter()
        loss = train_step(run, train, steps[run.step], run.epoch + run.step / len(steps))
        run.step += 1
        run.sums["seconds"] += time.perf_counter() - start
        yield loss


def first_steps(run: Run, train: Packed, steps: int) -> Iterator[float]:
    """Take so many steps, one each time that it is asked, as `fit` does; yields their losses.

    Nothing is evaluated between epochs, and nothing saved.

    Raises:
        NotFinite: as `train_step`.
        UserError: as `check_steps`.
    """
    check_steps(train, run.recipe)
    return itertools.islice(_endless_steps(run, train), steps)


def _endless_steps(run: Run, train: Packed) -> Iterator[float]:
    while True:
        yield from _steps_of_epoch(run, train)
        run.epoch, run.step, run.sums = run.epoch + 1, 0, _no_sums()


class NotFinite(UserError):
    """A loss or gradient that is not finite: it began with the `direction` of `module`.

    `direction` is "output" or "gradient", as in `first_non_finite`.
    """

    def __init__(self, message: str, module: str, direction: str):
        super().__init__(message)
        self.module, self.direction = module, direction


def train_step(run: Run, train: Packed, indexes: Tensor, epoch: float) -> float:
    """One step of gradient descent on the images `indexes`; returns their mean loss.

    Raises:
        NotFinite: the loss or a gradient is not finite; the weights are as before the step.
    """
    recipe = run.recipe
    key = (recipe.seed, STEP, run.epoch, run.step)
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    images, labels = train.batch(indexes[parallel.share()], run.device)
    draws = Draws(key, len(indexes), parallel.share(), run.device)
    classes = len(train.class_names)
    images, targets = recipe.augmentation(images, labels, classes, recipe.image_size_px, draws)
    # Dropout and stochastic depth draw from the global stream.
    torch.manual_seed(mixed_seed(*key) + cli.rank())
    logits, loss = _loss(run.forward, images, targets, len(indexes), run)
    run.optimizer.zero_grad()
    # DistributedDataParallel takes the mean over processes of what is each one's share of a sum.
    run.scaler.scale(loss * parallel.size()).backward()
    run.scaler.unscale_(run.optimizer)
    parameters = [one for one in run.network.parameters() if one.grad is not None]
    norm = gradient_norm([one.grad for one in parameters])
    if recipe.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, recipe.clip_norm, norm)
    hits = int((logits.argmax(1) == targets.argmax(1)).sum())
    mean_loss, hits = parallel.total([loss.item(), hits], run.device)
    if not _may_step(run, mean_loss, norm):
        torch.manual_seed(mixed_seed(*key) + cli.rank())
        raise _not_finite(run, images, targets, mean_loss, norm.item())
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average:
        run.average.update_parameters(run.network)
    run.sums["loss"] += mean_loss * len(indexes)
    run.sums["top1"] += hits
    run.sums["images"] += len(indexes)
    return mean_loss


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together; infinite only where one of them is."""
    norm = nn.utils.get_total_norm(gradients)
    if torch.isfinite(norm):
        return norm
    # Squares of fp32 values above 1.8e19 overflow: such gradients can still be clipped.
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in gradients]
    return torch.linalg.vector_norm(torch.stack(norms))


def _loss(
    forward: nn.Module, images: Tensor, targets: Tensor, batch_size: int, run: Run
) -> tuple[Tensor, Tensor]:
    """Logits, and these images' share of the mean loss over a batch of `batch_size`."""
    with autocast(run.recipe.precision, run.device):
        logits = forward(images)
    loss = functional.cross_entropy(
        logits.float(), targets, label_smoothing=run.recipe.label_smoothing, reduction="sum"
    )
    return logits, loss / batch_size


def _may_step(run: Run, loss: float, norm: Tensor) -> bool:
    # With fp16 an infinite gradient is the scaler's business: it skips the step and scales less.
    scaling = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    return math.isfinite(loss) and (scaling or math.isfinite(norm))


def _finish_epoch(run: Run, val: Packed) -> None:
    """Evaluate on val, add a row to the history and print it."""
    sums, found = run.sums, evaluate(run.evaluated, val, run.recipe, run.device)
    row = {
        "epoch": run.epoch + 1,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "train_loss": sums["loss"] / sums["images"],
        "train_top1": 100 * sums["top1"] / sums["images"],
        "val_loss": found["loss"],
        "val_top1": found["top1"],
        "val_top5": found["top5"],
        "images_per_second": sums["images"] / sums["seconds"],
        "seconds": sums["seconds"],
        "peak_memory_mib": peak_memory_mib(run.device),
    }
    if not run.history:
        print("epoch  train loss  train top-1  val loss  val top-1  val top-5  images/s  seconds")
    print(
        f"{row['epoch']:5}  {row['train_loss']:10.4f}  {row['train_top1']:9.2f} %"
        f"  {row['val_loss']:8.4f}  {row['val_top1']:7.2f} %  {row['val_top5']:7.2f} %"
        f"  {row['images_per_second']:8.1f}  {row['seconds']:7.1f}",
        flush=True,
    )
    run.history.append(row)
    run.epoch, run.step, run.sums = run.epoch + 1, 0, _no_sums()


def peak_memory_mib(device: torch.device) -> float:
    """Most memory so far in MiB: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@contextlib.contextmanager
def _stop_between_steps() -> Iterator[Callable[[], bool]]:
    """Ctrl-C asks to stop after the step, when the run is whole; a second one stops at once."""
    asked = []

    def ask(*_):
        asked.append(True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt(GO_ON)


# ------------------------------------------------------------------------------------ checkpoints


class Saver:
    """Writes a run's files: last.pt, best.pt and metrics.jsonl, each in one step."""

    def __init__(self, run: Run, folder: Path, identity: dict, every_seconds: float):
        self.run, self.folder, self.identity = run, folder, identity
        self.every_seconds, self.saved_at = every_seconds, time.monotonic()

    def now(self) -> None:
        """Save the whole run."""
        save_checkpoint(self.folder / "last.pt", {**self.run.state_dict(), "about": self.identity})
        self.saved_at = time.monotonic()

    def if_due(self) -> None:
        """Save the whole run where the last time is long enough ago."""
        if time.monotonic() - self.saved_at >= self.every_seconds:
            self.now()

    def epoch(self) -> None:
        """Save after an epoch: the best weights first, so that last.pt never promises lost ones."""
        run = self.run
        if run.best is run.history[-1]:
            best = {"network": run.evaluated.state_dict(), "about": self.identity, **run.best}
            save_checkpoint(self.folder / "best.pt", best)
        with cli.atomic(self.folder / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(cli.finite(row)) + "\n" for row in run.history))
        self.now()


def save_checkpoint(path: Path, state: dict) -> None:
    """`torch.save` in one step: a killed run or a full disk leaves the file before."""
    with cli.atomic(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # PyTorch's writer hides the system's reason
            raise UserError(f"{path}: cannot be written ({error}); is the disk full?") from None


def load_checkpoint(path: Path, device: torch.device) -> dict:
    """A checkpoint of `save_checkpoint`.

    Raises:
        UserError: the file can't be read as tensors and plain values.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a checkpoint that can be read safely ({reason})") from None


def _resume(run: Run, path: Path, identity: dict) -> None:
    if not path.exists():
        return
    try:
        state = load_checkpoint(path, run.device)
    except UserError as error:
        raise UserError(f"{error}; --fresh trains anew") from None
    saved = state["about"]
    differences = [
        f"{key} {saved.get(key)} (now {identity.get(key)})"
        for key in sorted(saved.keys() | identity.keys())
        if saved.get(key) != identity.get(key)
    ]
    if differences:
        raise UserError(
            f"{path} is of another run: {', '.join(differences)}; give its flags to go on with it,"
            " another --out, or --fresh to replace it"
        )
    run.load_state_dict(state)
    done = run.epoch >= run.recipe.epochs
    at = "complete" if done else f"going on at epoch {run.epoch + 1}, step {run.step + 1}"
    print(f"{path}: {at}; --fresh trains anew")


# ------------------------------------------------------------------------------- non-finite values


def _not_finite(run: Run, images: Tensor, targets: Tensor, loss: float, norm: float) -> NotFinite:
    """Where it begins, found by running the step again with every module watched."""
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
    module, direction = first_non_finite(
        run.network, lambda: _loss(run.network, images, targets, len(images), run)[1]
    )
    rate = run.optimizer.param_groups[0]["lr"]
    message = (
        f"{what} at epoch {run.epoch + 1}, step {run.step + 1}, learning rate {rate:.3g}: the first"
        f" non-finite {direction} is that of {module}; nothing of this step is kept; try a smaller"
        " --lr, --clip-norm 1 or --precision fp32"
    )
    return NotFinite(message, module, direction)


def first_non_finite(network: nn.Module, compute_loss: Callable[[], Tensor]) -> tuple[str, str]:
    """(module, "output" or "gradient") where a step's first non-finite value appears.

    `compute_loss` runs the network once.
    """
    found: list[tuple[str, str]] = []

    def look(module: str, direction: str, values: Tensor) -> None:
        if not torch.isfinite(values).all():
            found.append((module, direction))

    network.zero_grad()  # of the step that failed: its gradients are not to be added to
    with watched(network, look):
        loss = compute_loss()
        if not found and not torch.isfinite(loss):
            found.append(("the loss", "output"))
        loss.backward()
    return found[0] if found else (_non_finite_parameter(network), "gradient")


def _non_finite_parameter(network: nn.Module) -> str:
    for name, one in network.named_parameters():
        if one.grad is not None and not torch.isfinite(one.grad).all():
            return name
    return "all parameters together"


@contextlib.contextmanager
def watched(network: nn.Module, look: Callable[[str, str, Tensor], None]) -> Iterator[None]:
    """Call `look(module, direction, values)` for the output of every module, and its gradient.

    Outputs come in the order of execution (a block's after those of its parts, so that what a block
    computes outside modules is seen too), gradients of the loss with respect to outputs in that of
    the backward pass. `direction` is "output" or "gradient".
    """
    handles = []

    def hook_of(name: str):
        def hook(_module, _inputs, output):
            if not isinstance(output, Tensor):
                return
            look(name, "output", output.detach())
            if output.requires_grad:
                handles.append(
                    output.register_hook(lambda gradient: look(name, "gradient", gradient))
                )

        return hook

    handles += [
        module.register_forward_hook(hook_of(name))
        for name, module in network.named_modules()
        if name  # the network's own output is that of its last module
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
