"""torchsummary's tables as text and as rows."""

import contextlib
import io
import re

import torch
import torchsummary
from torch import nn

ROW = re.compile(r"^\s*(\w+-\d+)\s+\[([-\d, ]+)\]\s+([\d,]+)$", re.MULTILINE)


def summary_table(model: nn.Module, input_size: tuple[int, int, int]) -> str:
    """What torchsummary prints for one input of (channels, height, width).

    The model keeps its mode and its weights; it must be on the CPU.
    """
    training = model.training
    printed = io.StringIO()
    with torch.inference_mode(), contextlib.redirect_stdout(printed):
        torchsummary.summary(model.eval(), input_size, device="cpu")
    model.train(training)
    return printed.getvalue()


def layer_rows(table: str) -> list[tuple[str, list[int], int]]:
    """(name, output shape, parameters) of each layer in a table of torchsummary's."""
    return [
        (name, [int(size) for size in shape.split(",")], int(count.replace(",", "")))
        for name, shape, count in ROW.findall(table)
    ]


def without_weights(build) -> nn.Module:
    """A model from `build()` on the CPU whose weights are memory that nobody has set.

    For tables, which need shapes alone: initialising VGG-16 takes seconds.
    """
    with torch.device("meta"):
        model = build()
    return model.to_empty(device="cpu")
