"""The one training loop: fit, checkpoint, resume.

All random numbers (order and augmentation of the images, dropout, stochastic depth) are functions
of (seed, purpose, epoch, step). A checkpoint therefore needs no generator state, and a resumed run
ends with the same weights, bit for bit, as an uninterrupted one (on a CPU; on a GPU as far as
cuDNN's kernels are deterministic).
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from common import files, job
from common.data import streams
from common.data.augment import Draws, mix_maps, random_crops
from common.data.packed import Packed
from common.errors import GO_ON, Stopped, UserError, stop_at_once, stop_signals
from common.training import parallel
from common.training.evaluation import evaluate
from common.training.precision import autocast, for_float64
from common.training.recipe import Recipe
from common.training.run import Run, Saver, load_checkpoint, no_sums, peak_memory_mib
from common.training.watch import (
    DEAD_FROM_THE_START,
    WHOLE_NETWORK,
    NotFinite,
    dead_words,
    first_non_finite,
    warn_of_dead,
)

STATISTICS_IMAGES = 2048  # the most images that batch statistics are recomputed from


def fit(save: Saver, train: Packed, val: Packed, stopped: dict | None = None) -> list[dict]:
    """Train a run from its start or from where it stopped; its network gets the best weights.

    The folder gets best.pt (the weights with the best val top-1), metrics.jsonl, and, until the run
    is complete, last.pt (its whole state). `stopped` is what `load_stopped` read in the folder; it
    is refused if it belongs to another run. Without it the run starts anew.

    Returns:
        One dict per evaluated epoch: epoch, learning_rate, train_loss, train_top1, val_loss (None
        if an image's is not finite), val_top1, val_top5, images_per_second, seconds,
        peak_memory_mib, threads. Those of training are since the evaluation before.

    Raises:
        Stopped: after Ctrl-C or SIGTERM, once the run is saved.
    """
    run = save.run
    files.make_folder(save.folder)
    check_steps(train, run.recipe)
    if stopped:
        save.resume(stopped)
    elif any(save.folder.glob("*.pt")):
        save.now()  # from now on no other run can be resumed from the files in the folder
    with _stop_between_steps() as asked_to_stop:
        while run.epoch < run.recipe.epochs:
            train_one_epoch(run, train, save, asked_to_stop)
            if not run.recipe.evaluates_after(run.epoch):
                run.epoch, run.step = run.epoch + 1, 0
                continue
            if run.average:
                recompute_batch_norms(run, train)
            _finish_epoch(run, val)
            save.epoch()
    parallel.wait()
    best = load_checkpoint(save.folder / "best.pt")
    save.check(save.folder / "best.pt", best["about"])
    run.network.load_state_dict(best["network"])
    return run.history


def train_one_epoch(
    run: Run, train: Packed, save: Saver, asked_to_stop: Callable[[], int] = lambda: 0
) -> None:
    """Train the rest of the run's epoch: every image once, in steps of nearly equal size."""
    name, total = f"epoch {run.epoch + 1}/{run.recipe.epochs}", steps_per_epoch(train, run.recipe)
    with job.progress(total=total, initial=run.step, desc=name, leave=False) as bar:
        for _ in _steps_of_epoch(run, train):
            bar.update()
            if parallel.total([asked_to_stop()], run.device)[0]:
                save.now()
                raise Stopped(asked_to_stop() or signal.SIGTERM, GO_ON)
            save.if_due()


def steps_per_epoch(train: Packed, recipe: Recipe) -> int:
    """The number of steps in an epoch, which uses every image once."""
    return math.ceil(len(train) / recipe.batch_size)


def check_steps(train: Packed, recipe: Recipe) -> None:
    """Refuse steps that give a process a single image, since batch norm needs two."""
    least = len(train) // steps_per_epoch(train, recipe)
    if least < 2 * job.size():
        processes = f" for {job.size()} processes" if job.size() > 1 else ""
        raise UserError(
            f"--batch-size {recipe.batch_size}: {len(train)} training images make a step of"
            f" {least}{processes}, but batch norm needs 2 or more in each; give a larger"
            " --batch-size or more images"
        )


def _steps_of_epoch(run: Run, train: Packed) -> Iterator[float]:
    """Take the rest of the epoch's steps, one per iteration; yields each step's loss."""
    steps = _order_of_epoch(run, train)
    run.network.train()
    for module, probability in run.dropouts:
        module.p = run.recipe.strength_at(run.epoch) * probability
    while run.step < len(steps):
        start = time.perf_counter()
        # The learning rate is that of the step's middle: a warm-up's first step would have rate 0.
        loss = train_step(run, train, steps[run.step], run.epoch + (run.step + 0.5) / len(steps))
        run.step += 1
        run.sums["seconds"] += time.perf_counter() - start
        yield loss


def _order_of_epoch(run: Run, train: Packed) -> tuple[Tensor, ...]:
    """The indexes of each step's images in the run's epoch."""
    generator = streams.generator(run.recipe.seed, streams.ORDER, run.epoch)
    order = torch.randperm(len(train), generator=generator)
    return order.tensor_split(steps_per_epoch(train, run.recipe))


def endless_steps(run: Run, train: Packed) -> Iterator[float]:
    """Take steps as `fit` does, without end, one per iteration; yields each step's loss.

    Nothing is evaluated or saved between epochs.
    """
    check_steps(train, run.recipe)
    while True:
        yield from _steps_of_epoch(run, train)
        run.epoch, run.step, run.sums = run.epoch + 1, 0, no_sums()


def train_step(run: Run, train: Packed, indexes: Tensor, epoch: float) -> float:
    """Take one step of gradient descent on the images `indexes`; returns their cross-entropy.

    Raises NotFinite, and leaves the weights as they were, if the loss or a gradient is not finite.
    """
    recipe = run.recipe
    for group in run.optimizer.param_groups:
        group["lr"] = recipe.learning_rate_at(epoch)
    batch = process_batch(run, train, indexes)
    # Dropout and stochastic depth draw from PyTorch's global generator.
    dropout_seed = streams.mixed_seed(recipe.seed, streams.DROPOUT, run.epoch, run.step, job.rank())
    torch.manual_seed(dropout_seed)
    logits, cross_entropy, loss = _loss(run, run.forward, batch, len(indexes))
    run.optimizer.zero_grad()
    # Each process's loss is a share of a sum, but DistributedDataParallel averages over processes.
    run.scaler.scale(loss * job.size()).backward()
    run.scaler.unscale_(run.optimizer)
    trained = [parameter for parameter in run.trained.parameters() if parameter.grad is not None]
    norm = gradient_norm([parameter.grad for parameter in trained])
    if recipe.clip_norm:
        nn.utils.clip_grads_with_norm_(trained, recipe.clip_norm, norm)
    hits = int((logits.argmax(1) == batch.targets.argmax(1)).sum())
    mean_loss, hits = parallel.total([cross_entropy.item(), hits], run.device)
    # With fp16 the scaler handles an infinite gradient: it skips the step and lowers its scale.
    scaling = run.scaler.is_enabled() and run.scaler.get_scale() >= 1
    if not (math.isfinite(mean_loss) and (scaling or math.isfinite(norm))):
        torch.manual_seed(dropout_seed)
        raise _not_finite(run, batch, mean_loss, norm.item())
    if run.epoch == run.step == 0:
        warn_of_dead(run.network, mean_loss, len(train.class_names))
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.average:
        run.average.update_parameters(run.network)
    run.sums["loss"] += mean_loss * len(indexes)
    run.sums["top1"] += hits
    run.sums["images"] += len(indexes)
    return mean_loss


class Batch(NamedTuple):
    """Augmented images (N, 3, S, S), their classes' shares (N, classes), a teacher's features.

    The features are mixed place by place as the images are: (N, F, side, side) for each depth.
    """

    images: Tensor
    targets: Tensor
    features: list[Tensor]


def process_batch(run: Run, train: Packed, indexes: Tensor) -> Batch:
    """This process's share of a step on the images `indexes`.

    Every process augments and mixes the whole batch and then takes its share: an image may be mixed
    with one of another process, and augmentation is cheap compared with the network.
    """
    whole = _whole_batch(run, train, indexes, run.step, run.teacher)
    own = slice(job.rank(), None, job.size())
    images = whole.images[own].contiguous(memory_format=torch.channels_last)
    return Batch(images, whole.targets[own], [maps[own] for maps in whole.features])


def _whole_batch(run: Run, train: Packed, indexes: Tensor, step: int, teacher=None) -> Batch:
    recipe = run.recipe.at(run.epoch)
    images, labels = train.batch(indexes, run.device)
    draws = Draws(recipe.seed, streams.AUGMENT, run.epoch, step, len(indexes), run.device)
    crops = random_crops(recipe.augmentation.crop_area_min, draws)
    varied = recipe.augmentation.vary(images, crops, recipe.image_size_px, draws)
    targets = functional.one_hot(labels, len(train.class_names)).float()
    mixed, targets, pasted = recipe.augmentation.mix(varied, targets, draws)
    features = []
    if teacher:
        features = teacher.features(indexes, crops, run.trained.sides(recipe.image_size_px))
    return Batch(mixed, targets, [mix_maps(maps, pasted) for maps in features])


def recompute_batch_norms(run: Run, train: Packed) -> None:
    """Recompute the averaged network's batch-norm statistics from the epoch's images.

    Averaged running statistics are not the statistics of the averaged weights (Izmailov et al.
    2018, section 3.2). In a large data set the epoch's first 2,048 images are enough.
    """
    recipe, steps = run.recipe, _order_of_epoch(run, train)
    enough = math.ceil(STATISTICS_IMAGES / recipe.batch_size)
    # Of each, update_bn takes the first field, the images.
    batches = (_whole_batch(run, train, some, k) for k, some in enumerate(steps[:enough]))
    torch.manual_seed(streams.mixed_seed(recipe.seed, streams.DROPOUT, run.epoch, len(steps)))
    with autocast(recipe.precision, run.device):
        update_bn(batches, run.evaluated)


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The Euclidean norm of all gradients together; infinite only if a gradient is."""
    norm = nn.utils.get_total_norm(gradients)
    if torch.isfinite(norm):
        return norm
    # Squares of fp32 values above 1.8e19 overflow; float64 lets such gradients still be clipped.
    values = map(for_float64, gradients)
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in values]
    return torch.linalg.vector_norm(torch.stack(norms))


def _loss(run: Run, forward: nn.Module, batch: Batch, batch_size: int) -> tuple[Tensor, ...]:
    """Logits; shares of a batch's mean cross-entropy and of its loss, with a teacher's part."""
    with autocast(run.recipe.precision, run.device):
        outputs = forward(batch.images)
    logits, guessed = outputs if run.teacher else (outputs, [])
    smoothing = run.recipe.label_smoothing
    loss = cross_entropy = functional.cross_entropy(
        logits.float(), batch.targets, label_smoothing=smoothing, reduction="sum"
    )
    for maps, features in zip(guessed, batch.features, strict=True):
        errors = (maps.float() - features).flatten(1).square().mean(dim=1)
        loss = loss + run.teacher.loss_weight * errors.sum()
    return logits, cross_entropy / batch_size, loss / batch_size


def _finish_epoch(run: Run, val: Packed) -> None:
    """Evaluate on val, add a row to the history and print it, and begin the next epoch."""
    parallel.share_buffers(run.evaluated)
    sums, on_val = run.sums, evaluate(run.evaluated, val, run.recipe, run.device)
    row = {
        "epoch": run.epoch + 1,
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "train_loss": sums["loss"] / sums["images"],
        "train_top1": 100 * sums["top1"] / sums["images"],
        "val_loss": on_val["loss"],
        "val_top1": on_val["top1"],
        "val_top5": on_val["top5"],
        "images_per_second": sums["images"] / sums["seconds"],
        "seconds": sums["seconds"],
        "peak_memory_mib": peak_memory_mib(run.device),
        "threads": torch.get_num_threads(),  # on a CPU another number gives other bits
    }
    if not run.history:
        job.say("epoch  train loss  train top-1  val loss  val top-1  val top-5  images/s  seconds")
    val_loss = f"{'-':>8}" if row["val_loss"] is None else f"{row['val_loss']:8.4f}"
    job.say(
        f"{row['epoch']:5}  {row['train_loss']:10.4f}  {row['train_top1']:9.2f} %"
        f"  {val_loss}  {row['val_top1']:7.2f} %  {row['val_top5']:7.2f} %"
        f"  {row['images_per_second']:8.1f}  {row['seconds']:7.1f}"
    )
    run.history.append(row)
    run.epoch, run.step, run.sums = run.epoch + 1, 0, no_sums()


@contextlib.contextmanager
def _stop_between_steps() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C or SIGTERM stop the run after the current step; a second signal ends it at once.

    Yields a function that returns the signal received, or 0.
    """
    asked = []

    def ask(number: int, _frame) -> None:
        asked.append(number)
        stop_at_once()

    with stop_signals(ask):
        yield lambda: asked[0] if asked else 0
    if asked:
        raise Stopped(asked[0], GO_ON)


# ------------------------------------------------------------------------------- non-finite values


def _not_finite(run: Run, batch: Batch, loss: float, norm: float) -> NotFinite:
    """Find where the first bad value appears: run the step again with every module watched."""
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
    found = parallel.gather(
        first_non_finite(run.trained, lambda: _loss(run, run.trained, batch, len(batch.images))[2])
    )
    # The value may have appeared in one process alone.
    module, direction = next((place for place in found if place[0] != WHOLE_NETWORK), found[0])
    rate, dead = run.optimizer.param_groups[0]["lr"], dead_words(run.network)
    advice = "; try a smaller --lr, --clip-norm 1 or --precision fp32"
    if dead and run.epoch == run.step == 0:
        advice = DEAD_FROM_THE_START
    message = (
        f"{what} at epoch {run.epoch + 1}, step {run.step + 1}, learning rate {rate:.3g}: the first"
        f" non-finite {direction} is that of {module}; nothing of this step is kept{dead}{advice}"
    )
    return NotFinite(message, module, direction)
