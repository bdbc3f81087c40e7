"""The last layer solved anew: ridge regression of the classes on a trained network's own features.

A last layer that learns beside all others, from varied and mixed images, lags behind its features
(Kang et al. 2020 train it anew too). It is linear, so that it can be solved from them at once.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.data.packed import Packed
from common.training import parallel
from common.training.precision import autocast
from common.training.run import Run, Saver, load_checkpoint, save_checkpoint

STRENGTHS = (30, 100, 300, 1000, 3000, 10_000)  # of the ridge regression
SCALES = (2, 4, 8, 16, 32)  # of the logits, which squares keep within about one


def solve_head(save: Saver, train: Packed, val: Packed) -> dict:
    """Solve a trained run's last layer anew, once; its network and best.pt get it.

    Mirrored train images count too. The strength is chosen on val by top-1, then a factor of all
    logits by cross-entropy. The first process of a job solves for all.

    Returns:
        strength, scale, val_loss and val_top1 (per cent).
    """
    run, path = save.run, save.folder / "best.pt"
    parallel.broadcast(lambda: _solve(run, path, train, val))
    best = load_checkpoint(path)
    run.network.load_state_dict(best["network"])
    return best["head"]


def _solve(run: Run, path: Path, train: Packed, val: Packed) -> None:
    """Write the solved last layer into best.pt, and "head", what was chosen on val; only once."""
    trained = load_checkpoint(path)
    if "head" in trained:
        return
    features = torch.cat([last_features(run, train, mirror) for mirror in (False, True)])
    targets = functional.one_hot(train.labels, len(train.class_names)).float().repeat(2, 1)
    asked, found = last_features(run, val), []
    for strength, layer in zip(STRENGTHS, ridge_layers(features, targets, STRENGTHS), strict=True):
        logits = functional.linear(asked, *layer)
        top1 = 100 * (logits.argmax(1) == val.labels).double().mean().item()
        found.append((top1, strength, logits, layer))
    top1, strength, logits, layer = max(found, key=lambda one: one[0])  # the first of equals
    losses = {scale: functional.cross_entropy(scale * logits, val.labels) for scale in SCALES}
    scale = min(losses, key=losses.get)
    with torch.no_grad():
        for parameter, value in zip(last_layer(run.network).parameters(), layer, strict=True):
            parameter.copy_(scale * value)
    head = {"strength": strength, "scale": scale, "val_loss": losses[scale].item()}
    head["val_top1"] = top1
    solved = {"network": run.network.state_dict(), "head": head, "val_top1": top1}
    save_checkpoint(path, {**trained, **solved})


def last_layer(network: nn.Module) -> nn.Linear:
    """The last linear layer of a network, which returns the logits."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


@torch.inference_mode()
def last_features(run: Run, split: Packed, mirror: bool = False) -> Tensor:
    """What the last layer sees of a split's central squares: float32 (n, D), on the CPU."""
    run.network.eval()
    seen = []
    hook = last_layer(run.network).register_forward_pre_hook(
        # An odd image can be too much for an unbounded activation.
        lambda _, inputs: seen.append(inputs[0].float().nan_to_num(0, 0, 0).cpu())
    )
    with hook, autocast(run.recipe.precision, run.device):
        for indexes in torch.arange(len(split)).split(2 * run.recipe.batch_size):
            squares, _ = split.squares(indexes, run.recipe.image_size_px, run.device)
            run.network(squares.flip(3) if mirror else squares)
    return torch.cat(seen)


def ridge_layers(
    features: Tensor, targets: Tensor, strengths: Sequence[float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ridge regressions of targets (N, C) on standardised features (N, D), as weights and biases.

    A strength multiplies the squared weights. Yields float32 (C, D) and (C,) for each. Deviations
    are at least a thousandth of their median, or a nearly dead feature could have a huge weight.
    """
    count = len(features)
    mean, share = (values.mean(0, dtype=torch.float64) for values in (features, targets))
    products = torch.zeros(features.shape[1], features.shape[1] + targets.shape[1]).double()
    for some, wanted in zip(features.split(4096), targets.split(4096), strict=True):
        some = some.double() - mean
        products += some.T @ torch.cat([some, wanted.double()], dim=1)
    scatter, towards = products.tensor_split([len(mean)], dim=1)
    deviation = (scatter.diag() / count).sqrt()
    deviation = deviation.clamp(min=max(1e-3 * deviation.median().item(), 1e-9))[:, None]
    for strength in strengths:
        ridge = scatter / deviation / deviation.T + strength * torch.eye(len(mean))
        weight = torch.linalg.solve(ridge, towards / deviation) / deviation
        yield weight.T.float(), (share - mean @ weight).float()
