"""What a network is made of: torchsummary's tables, parameters, multiply-adds.

    from torchvision.models import resnet18; from common.networks.summary import summary_table
    table = summary_table(resnet18(), (3, 64, 64))
    print(table)

Networks are on the CPU, and keep their mode and their weights.
"""

import contextlib
import io
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping

import torch
import torchsummary
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

ROW = re.compile(r"^\s*(\w+)-(\d+)\s+\[([-\d, ]+)\]\s+([\d,]+)$", re.MULTILINE)


def summary_table(
    model: nn.Module, input_size: tuple[int, int, int], hide: Collection[str] = ()
) -> str:
    """What torchsummary prints for an input of (channels, height, width).

    Rows of modules of the classes named in `hide` are left out as if a function stood in their
    place: the others are numbered anew, and sizes are those of the rows that are shown. Such
    modules have no parameters.

    The model must be on the CPU; it keeps its mode and its weights.
    """
    was_training = model.training
    printed = io.StringIO()
    with torch.inference_mode(), contextlib.redirect_stdout(printed):
        torchsummary.summary(model.eval(), tuple(input_size), device="cpu")
    model.train(was_training)
    table = printed.getvalue()
    return _without(hide, table, input_size) if hide else table


def _without(hide: Collection[str], table: str, input_size: tuple[int, int, int]) -> str:
    lines, number, outputs = [], 0, 0
    for line in table.splitlines():
        row = ROW.match(line)
        if row is None:
            lines.append(line)
        elif row[1] not in hide:
            number += 1
            name, shape = f"{row[1]}-{number}", f"[{row[3]}]"
            lines.append(f"{name:>20}  {shape:>25} {row[4]:>15}")  # torchsummary's columns
            outputs += math.prod(_shape(row[3])[1:])
    shown = "\n".join(lines) + "\n"
    parameters = sum(count for _, _, count in layer_rows(shown))
    # torchsummary's own reckoning: float32, one image, outputs twice for their gradients.
    passes_mb = 2 * _megabytes(outputs)
    total_mb = _megabytes(parameters) + passes_mb + _megabytes(math.prod(input_size))
    shown = _with_size(shown, "Forward/backward pass size", passes_mb)
    return _with_size(shown, "Estimated Total Size", total_mb)


def _with_size(table: str, name: str, megabytes: float) -> str:
    label = re.escape(f"{name} (MB): ")
    return re.sub(f"^({label}).*$", rf"\g<1>{megabytes:.2f}", table, flags=re.MULTILINE)


def _megabytes(numbers: int) -> float:
    return numbers * 4 / 2**20


def tables_in_turn(
    parts: Mapping[str, nn.Module], input_size: tuple[int, int, int], hide: Collection[str] = ()
) -> dict[str, str]:
    """`summary_table` of each part on its own, which takes what the part before puts out."""
    tables, size = {}, input_size
    for name, part in parts.items():
        tables[name] = summary_table(part, size, hide)
        _, (_, *size), _ = layer_rows(tables[name])[-1]
    return tables


def layer_rows(table: str) -> list[tuple[str, list[int], int]]:
    """(name, output shape, parameters) of each layer in a table of torchsummary's."""
    return [
        (f"{kind}-{number}", _shape(shape), int(count.replace(",", "")))
        for kind, number, shape, count in ROW.findall(table)
    ]


def _shape(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """A model from `build()` on the CPU whose weights are memory that nobody has set.

    For tables, which need shapes alone: initialising VGG-16 takes seconds.
    """
    with torch.device("meta"):
        model = build()
    return model.to_empty(device="cpu")


def weighted_layers(network: nn.Module, skip: str) -> list[str]:
    """The names of convolutions and linear layers, without those in modules named `skip`."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and skip not in name.split(".")
    ]


def count_parameters(network: nn.Module) -> int:
    """The number of trainable scalars."""
    return sum(weight.numel() for weight in network.parameters() if weight.requires_grad)


def count_macs(network: nn.Module, image_size_px: int, names: Iterable[str]) -> dict[str, int]:
    """Multiply-adds of convolutions and matrix products for one square image, by module.

    `names` are those of modules of the bare network, which is on the CPU and keeps its mode.

    Raises:
        KeyError: there is no such module, or it multiplies nothing.
    """
    was_training = network.training
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, image_size_px, image_size_px))
    network.train(was_training)
    counts, root = counter.get_flop_counts(), type(network).__name__
    return {name: sum(counts[f"{root}.{name}"].values()) // 2 for name in names}
