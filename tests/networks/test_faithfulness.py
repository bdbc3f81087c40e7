import pytest
import torch
from torch import nn

from common.networks import gradcam


def noise(side_px=32):
    return torch.rand(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))


def test_each_step_deletes_the_same_number_of_pixels():
    images, seen = torch.rand(1, 3, 8, 8), []

    def count(batch):
        seen.append((batch != images).any(dim=1).sum().item())
        return torch.zeros(1, 2)

    gradcam.deletion_and_insertion(count, images, torch.rand(1, 8, 8), torch.tensor([0]), steps=4)
    assert seen[:5] == [0, 16, 32, 48, 64]


class Linear(nn.Module):
    """Two classes, whose first has a probability that is linear in the pixels."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, images):
        share = (self.weights * images).sum(dim=(1, 2, 3))[:, None]
        return torch.cat([share, 1 - share], dim=1).log()


def test_of_a_linear_network_the_curves_are_running_sums():
    images = noise(4).double()
    weights = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    weights /= weights.sum()  # of pixels in [0, 1] the probability is in [0, 1]
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2))
    found = gradcam.deletion_and_insertion(
        Linear(weights), images, maps, torch.tensor([0, 0]), steps=16
    )
    for kind, first, last in (
        ("deletion", images, images.mean((2, 3), keepdim=True).expand_as(images)),
        ("insertion", gradcam.blurred(images), images),
    ):
        gains = (weights * (last - first)).sum(1).flatten(1)
        gains = gains.gather(1, maps.flatten(1).argsort(dim=1, descending=True))
        start = (weights * first).sum((1, 2, 3))[:, None]
        wanted = torch.cat([start, start + gains.cumsum(1)], dim=1)
        torch.testing.assert_close(found[kind], wanted)


def test_the_random_control_is_smooth_and_depends_on_its_generator_alone():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return gradcam.random_maps(torch.zeros(5, 3, 32, 32), (2, 2), generator)

    maps = draw(0)
    assert maps.shape == (5, 32, 32)
    assert torch.equal(maps, draw(0))
    assert not torch.equal(maps, draw(1))
    assert len({tuple(one.flatten().tolist()) for one in maps}) == 5
    assert maps.diff(dim=1).abs().max() <= 1 / 16 + 1e-6  # two cells, 16 px apart


def test_area_is_that_under_the_line():
    assert gradcam.area_under(torch.tensor([[1.0, 0.0, 0.0]])).item() == pytest.approx(0.25)


def test_the_centred_control_is_highest_in_the_middle():
    maps = gradcam.centred_maps(torch.zeros(2, 3, 9, 9))
    assert maps.shape == (2, 9, 9)
    assert maps[0].argmax().item() == 9 * 4 + 4
