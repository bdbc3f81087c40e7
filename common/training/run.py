"""A training under way: the network, what is averaged, the optimiser, and how far it has come."""

import resource
import sys
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.ops import StochasticDepth

from common.training import parallel
from common.training.recipe import Recipe


class Teacher(Protocol):
    """What a taught run asks for (`common.studies.teacher` has one)."""

    loss_weight: float

    def taught(self, network: nn.Module) -> nn.Module:
        """A module that gives logits and guessed features, with `network` and a `guess` in it."""

    def views(self, images: Tensor, indexes: Tensor, epoch: int, size_px: int) -> tuple:
        """Images varied, float (N, 3, size_px, size_px), and their features (N, F)."""


class Run:
    """A network in training: everything that a step changes, and that a checkpoint holds."""

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        device: torch.device,
        gpus: int = 0,
        teacher: Teacher | None = None,
    ):
        self.recipe, self.device, self.teacher = recipe, device, teacher
        self.network = network.to(device, memory_format=torch.channels_last)
        # What is trained: the network, or what guesses a teacher's features with it.
        self.trained = teacher.taught(self.network).to(device) if teacher else self.network
        compiled = torch.compile(self.trained) if recipe.compile else self.trained
        self.forward = parallel.wrap(compiled, device, gpus)
        self.average = None
        if recipe.ema_decay:
            average = _warm_average(recipe.ema_decay)
            self.average = AveragedModel(self.network, multi_avg_fn=average)
        self.optimizer = _make_optimizer(self.trained, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        kinds = (nn.Dropout, StochasticDepth)
        modules = [*self.network.modules(), *(self.average.modules() if self.average else ())]
        self.dropouts = [(module, module.p) for module in modules if isinstance(module, kinds)]
        self.epoch = self.step = 0
        self.sums = no_sums()
        self.history: list[dict] = []

    def set_dropout(self, strength: float) -> None:
        """Let dropout and stochastic depth drop so much of what the network was built with."""
        for module, probability in self.dropouts:
            module.p = strength * probability

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
        guess = {"guess": self.trained.guess.state_dict()} if self.teacher else {}
        return {
            **guess,
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
        if self.teacher:
            self.trained.guess.load_state_dict(state["guess"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.sums, self.history = state["sums"], state["history"]


def no_sums() -> dict:
    """What an epoch's steps add up, before the first."""
    return {"loss": 0.0, "top1": 0, "images": 0, "seconds": 0.0}


def peak_memory_mib(device: torch.device) -> float:
    """Most memory so far in MiB: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _warm_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Tensor], None]:
    """Exponential moving average, its decay growing with the steps n: min(decay, (1+n) / (10+n)).

    A constant decay would keep the initial weights for long. What batch norm has averaged is
    recomputed for the averaged weights (`loop.recompute_batch_norms`).
    """

    def update(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
        now = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(now)(averaged, current, steps)

    return update


def _make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    # Norms and biases: pulling them to zero regularises nothing (He et al. 2019, section 3).
    vectors = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    options = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, **options)
    return torch.optim.AdamW(groups, **options, fused=True)
