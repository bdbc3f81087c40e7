"""Evaluation: loss and accuracy of a network over all images of a split."""

import math
import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from common import job
from common.data.packed import Packed
from common.training import parallel
from common.training.precision import autocast
from common.training.recipe import Recipe
from common.training.watch import NotFinite, dead_words


@torch.inference_mode()
def evaluate(
    network: nn.Module, split: Packed, recipe: Recipe, device: torch.device, *, flip: bool = False
) -> dict:
    """Mean cross-entropy and accuracy of a network over all images of a split.

    The network classifies each image's central square; `flip` averages the logits of the square and
    its mirror image. The processes of a job share the images. An image with logits that are not
    finite counts as wrong, and a line reports it: one odd picture can be too much for an unbounded
    activation. NotFinite is raised if no image has finite logits.

    Returns:
        loss (None if an image's is not finite); in per cent top1, top5 and per_class (the mean over
        classes of top-1 within the class); the numbers correct, images and not_finite (images
        without finite logits); and hits, a string of one character per image, 1 or 0.
    """
    was_training = network.training
    network.eval()
    loss, top5, bad, correct = 0.0, 0, 0, torch.zeros(len(split), dtype=torch.int64)
    for indexes in torch.arange(len(split))[job.rank() :: job.size()].split(2 * recipe.batch_size):
        squares, labels = split.squares(indexes, recipe.image_size_px, device)
        with autocast(recipe.precision, device):
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
