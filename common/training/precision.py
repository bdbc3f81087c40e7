"""Choose the precision that is fastest on this device by timing, never by a processor flag.

Some processors list bf16 instructions but are twice as fast in fp32, some are twice as fast in
bf16, and some have no such instructions at all.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.job import say
from common.training import parallel
from common.training.convolutions import with_fast_convolutions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GAIN_MIN = 1.1  # repeated timings of one precision differ by up to this factor
MEASURED_SECONDS, MEASURED_STEPS = 1.0, 3  # timing stops after either
SIDE_PX_MOST, PIXELS_MOST = 128, 2**15  # of the images timed on a CPU, where a step takes seconds
FEW_SIDE_PX = 64  # in bf16 a step of ResNet-36 on 8 such images takes 21 s on a processor with AVX2


@dataclass(frozen=True)
class Precision:
    """A precision, the reason for its choice in words, and the speed measured with it."""

    name: str
    why: str
    images_per_second: float | None = None  # of one CPU thread or one GPU; None: not measured


@dataclass(frozen=True)
class Example:
    """A training step to be timed: the network that `build` makes, and its batch of images."""

    build: Callable[[], nn.Module]
    batch_size: int
    image_size_px: int
    device: torch.device

    def seconds(self, *precisions: str) -> dict[str, float]:
        """The least seconds per image of a forward and backward pass, by precision.

        One CPU thread is used: several would time a busy machine's scheduler too. A precision whose
        first step on few pixels is twice as slow as that of the first precision is not timed again.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            network, images = self._network_and_images()
            few = images[:2, :, :FEW_SIDE_PX, :FEW_SIDE_PX]
            tried = {name: self._step_seconds(network, few, name) for name in precisions}
            slower = {name: tried[name] / tried[precisions[0]] for name in precisions}
            timed = {name: [] for name in precisions if slower[name] < 2}
            first, end = timed[precisions[0]], time.perf_counter() + MEASURED_SECONDS
            while not first or (len(first) < MEASURED_STEPS and time.perf_counter() < end):
                for name, seconds in timed.items():
                    seconds.append(self._step_seconds(network, images, name))
        torch.set_num_threads(threads)
        scale = (self.image_size_px / images.shape[-1]) ** 2 / len(images)
        return {
            name: scale * (min(timed[name]) if name in timed else min(first) * slower[name])
            for name in precisions
        }

    def _network_and_images(self) -> tuple[nn.Module, Tensor]:
        count, side_px, network = self.batch_size, self.image_size_px, self.build()
        if self.device.type == "cpu":
            side_px = min(side_px, SIDE_PX_MOST)
            count = max(2, min(count, PIXELS_MOST // side_px**2))
            network = with_fast_convolutions(network, self.device)
        images = torch.rand(count, 3, side_px, side_px, device=self.device)
        placed = {"device": self.device, "memory_format": torch.channels_last}
        return network.to(**placed).train(), images.to(**placed)

    def _step_seconds(self, network: nn.Module, images: Tensor, precision: str) -> float:
        network.zero_grad()
        start = time.perf_counter()
        with autocast(precision, self.device):
            logits = network(images)
        functional.cross_entropy(logits.float(), logits.new_zeros(len(images)).long()).backward()
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter() - start


def choose_precision(asked: str, example: Example | None) -> Precision:
    """The precision that `--precision` asks for; for "auto" the one measured to be fastest.

    `example` is None if nothing is trained. The first process of a job decides for all, so call
    this after `parallel.start`.
    """
    if asked != "auto":
        return Precision(asked, "asked for")
    if example is None:
        return Precision("fp32", "nothing is trained")
    chosen = parallel.broadcast(lambda: _fastest(example))
    say(f"precision: {chosen.name}, {chosen.why}")
    return chosen


def _fastest(example: Example) -> Precision:
    is_cuda = example.device.type == "cuda"
    emulates_bf16 = is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False)
    half = "fp16" if emulates_bf16 else "bf16"
    seconds = example.seconds("fp32", half)
    gain = seconds["fp32"] / seconds[half]
    name = half if gain >= GAIN_MIN else "fp32"
    why = f"a step in {half} is {gain:.2f} times as fast as in fp32"
    return Precision(name, why, 1 / seconds[name])


def make_deterministic(example: Example) -> None:
    """Let PyTorch use kernels that repeat their bits, and print what that costs on this device.

    CPU kernels repeat them anyway. Call this before the first matrix product on a GPU: there cuBLAS
    reads its environment variable.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    free = example.seconds("fp32")["fp32"]
    torch.use_deterministic_algorithms(True, warn_only=True)
    ratio = example.seconds("fp32")["fp32"] / free
    say(f"--deterministic: a step takes {ratio:.2f} times as long as without")


def for_float64(values: Tensor) -> Tensor:
    """Values on a device that has float64: those on a Mac's GPU are moved to the CPU."""
    return values.cpu() if values.device.type == "mps" else values


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast of a precision; it does nothing in fp32."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "fp32")
