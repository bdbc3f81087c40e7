"""What a network is made of: torchsummary's tables, parameters, multiply-adds.

    from torchvision.models import resnet18; from common.networks.summary import summary_table
    table = summary_table(resnet18(), (3, 64, 64))
    print(table)

All of it follows from shapes: nothing is computed, and the network stays unchanged.
"""

import copy
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Table:
    """The table that torchsummary prints of a network.

    rows: (name, output shape, parameters) of each layer, in the order of the calls.
    """

    input_size: tuple[int, ...]
    rows: list[tuple[str, list[int], int]]
    trainable: int

    def __str__(self) -> str:
        total = sum(parameters for _, _, parameters in self.rows)
        # torchsummary counts in this way: float32, one image, outputs twice for their gradients.
        numbers = {
            "Input size": math.prod(self.input_size),
            "Forward/backward pass size": 2 * sum(math.prod(row[1][1:]) for row in self.rows),
            "Params size": total,
        }
        numbers["Estimated Total Size"] = sum(numbers.values())
        rule, double = "-" * 64, "=" * 64
        lines = [rule, f"{'Layer (type)':>20}  {'Output Shape':>25} {'Param #':>15}", double]
        lines += [f"{name:>20}  {shape!s:>25} {count:>15,}" for name, shape, count in self.rows]
        lines += [double, f"Total params: {total:,}", f"Trainable params: {self.trainable:,}"]
        lines += [f"Non-trainable params: {total - self.trainable:,}", rule]
        lines += [f"{name} (MB): {count * 4 / 2**20:.2f}" for name, count in numbers.items()]
        return "\n".join([*lines, rule, ""])


def summary_table(
    model: nn.Module, input_size: tuple[int, int, int], hide: Collection[str] = ()
) -> Table:
    """The table that torchsummary prints for an input of (channels, height, width).

    Modules of the classes named in `hide`, which have no parameters, are left out.
    """
    rows, shapes = [], shapes_alone(model)

    def note(module: nn.Module, _inputs, output: Tensor) -> None:
        kind = type(module).__name__
        if kind not in hide:
            own = (getattr(module, name, None) for name in ("weight", "bias"))
            parameters = sum(tensor.numel() for tensor in own if tensor is not None)
            rows.append((f"{kind}-{len(rows) + 1}", [-1, *output.shape[1:]], parameters))

    for module in shapes.modules():
        if not isinstance(module, nn.Sequential) and module is not shapes:
            module.register_forward_hook(note)
    with torch.inference_mode():
        shapes(torch.zeros(1, *input_size, device="meta"))
    return Table(tuple(input_size), rows, count_parameters(model))


def shapes_alone(network: nn.Module) -> nn.Module:
    """A copy in eval mode on PyTorch's meta device, where tensors have shapes but no values."""
    return copy.deepcopy(network).to("meta").eval()


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """A model from `build()` whose weights have shapes and no values, on the meta device."""
    with torch.device("meta"):
        return build()


def weighted_layers(network: nn.Module, skip: str) -> list[str]:
    """The names of convolutions and linear layers that are not in modules named `skip`."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and skip not in name.split(".")
    ]


def count_parameters(network: nn.Module) -> int:
    """The number of trainable scalars."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def count_macs(network: nn.Module, image_size_px: int, names: Iterable[str]) -> dict[str, int]:
    """Multiply-adds of the named modules for one square image; all must multiply something."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shapes_alone(network)(torch.zeros(1, 3, image_size_px, image_size_px, device="meta"))
    counts, root = counter.get_flop_counts(), type(network).__name__
    return {name: sum(counts[f"{root}.{name}"].values()) // 2 for name in names}
