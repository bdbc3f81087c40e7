"""Evaluation: loss and accuracy of a network over every image of a split, once."""

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import job
from common.data.augment import centre_square
from common.data.packed import Packed
from common.training import parallel
from common.training.precision import autocast
from common.training.recipe import Recipe
from common.training.watch import NotFinite, dead_words


@torch.inference_mode()
def evaluate(
    network: nn.Module, split: Packed, recipe: Recipe, device: torch.device, *, flip: bool = False
) -> dict:
    """Mean cross-entropy, top-1 and top-5 in per cent, over every image of a split once.

    The central square is classified, with `flip` by the mean logits of it and its mirror image; the
    processes of a job share the images. An image whose logits are not finite counts as wrong, and a
    line says so: one odd picture can be too much for an unbounded activation. Where no image's are
    finite NotFinite is raised.

    Returns:
        loss (None where an image's is not finite), top1, top5, per_class (the mean over classes of
        top-1 within the class; all in per cent), correct, images, not_finite (the number of such
        images), and hits (a character an image, 1 or 0).
    """
    was_training = network.training
    network.eval()
    loss, top5, bad, correct = 0.0, 0, 0, torch.zeros(len(split), dtype=torch.int64)
    for indexes in torch.arange(len(split))[job.rank() :: job.size()].split(2 * recipe.batch_size):
        images, labels = split.batch(indexes, device)
        with autocast(recipe.precision, device):
            squares = centre_square(images, recipe.image_size_px)
            logits = network(squares).float()
            if flip:
                logits = (logits + network(squares.flip(3)).float()) / 2
        finite = logits.isfinite().all(dim=1)
        loss += functional.cross_entropy(logits[finite], labels[finite], reduction="sum").item()
        hits = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits &= finite[:, None]
        correct[indexes] = hits[:, 0].long().cpu()
        top5 += int(hits.sum())
        bad += int((~finite).sum())
    loss, top5, bad, *correct = parallel.total([loss, top5, bad, *correct.tolist()], device)
    count, total, bad = len(split), int(sum(correct)), int(bad)
    if bad == count:
        raise NotFinite(
            f"{split.source.name}: no loss is finite; these weights can't be used"
            f"{dead_words(network)}; try a smaller --lr, a smaller --weight-decay or other --init",
            "the logits",
            "output",
        )
    if bad:
        which = f"the logits of {bad:,} of {count:,} images"
        job.say(f"{split.source.name}: {which} are not finite and count as wrong", file=sys.stderr)
    network.train(was_training)
    return {
        "loss": None if bad or not math.isfinite(loss) else loss / count,
        "top1": 100 * total / count,
        "top5": 100 * top5 / count,
        "per_class": per_class(split.labels, torch.tensor(correct)),
        "correct": total,
        "images": count,
        "not_finite": bad,
        "hits": "".join(str(int(hit)) for hit in correct),
    }


def per_class(labels: Tensor, correct: Tensor) -> float:
    """The mean over classes of the accuracy within the class, in per cent.

    `labels` are int64 (N,), `correct` (N,) of ones and zeros.
    """
    images = labels.bincount()
    hits = labels.bincount(weights=correct.double())
    return 100 * (hits / images)[images > 0].mean().item()
