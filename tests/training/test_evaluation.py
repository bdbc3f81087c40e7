import pytest
import torch
from torch import nn

from common.training.evaluation import evaluate
from tests.training.test_loop import CPU, RECIPE, packed


def test_flip_averaging_takes_the_mean_logits_of_an_image_and_its_mirror_image():
    class Sides(nn.Module):
        def forward(self, images):
            left, right = images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))
            return torch.stack([left, torch.full_like(left, 0.3), right], dim=1)

    split = packed()
    split.images[:, :, :4] = 100  # the left is dark, the right is bright
    split.images[:, :, 4:] = 250
    alone = evaluate(Sides(), split, RECIPE, CPU)
    both = evaluate(Sides(), split, RECIPE, CPU, flip=True)
    mean = torch.tensor([[350 / 510, 0.3, 350 / 510]]).expand(11, 3)
    wanted = nn.functional.cross_entropy(mean, split.labels).item()
    assert both["loss"] == pytest.approx(wanted, rel=1e-5)
    assert alone["loss"] != pytest.approx(wanted, rel=1e-3)
