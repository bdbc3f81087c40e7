import pytest
import torch
from torch import nn

from common.networks import faithfulness


class Corner(nn.Module):
    """Answers 1 by how much detail the top left quarter has, and nothing else."""

    def forward(self, images):
        half = images.shape[-1] // 2
        detail = images[:, :, :half, :half].std(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(detail), 20 * (detail - 0.15)], dim=1)


def noise(side_px=32):
    return torch.rand(2, 3, side_px, side_px, generator=torch.Generator().manual_seed(0))


def test_the_pixels_that_count_go_and_come_first():
    images, classes = noise(), torch.tensor([1, 1])
    right = torch.zeros(2, 32, 32)
    right[:, :16, :16] = 1
    areas = {}
    for name, maps in (("right", right), ("wrong", 1 - right)):
        found = faithfulness.curves(Corner(), images, maps, classes, steps=4)
        assert found["deletion"].shape == (2, 5)
        areas[name] = {kind: faithfulness.area(curve) for kind, curve in found.items()}
    assert (areas["right"]["deletion"] < areas["wrong"]["deletion"]).all()
    assert (areas["right"]["insertion"] > areas["wrong"]["insertion"]).all()


def test_the_ends_are_the_image_itself_and_nothing_of_it():
    images, classes = noise(), torch.tensor([1, 0])
    found = faithfulness.curves(Corner(), images, torch.rand(2, 32, 32), classes, steps=3)
    whole = Corner()(images).softmax(1).gather(1, classes[:, None])[:, 0]
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    grey = Corner()(mean).softmax(1).gather(1, classes[:, None])[:, 0]
    torch.testing.assert_close(found["deletion"][:, 0], whole)
    torch.testing.assert_close(found["insertion"][:, -1], whole)
    torch.testing.assert_close(found["deletion"][:, -1], grey)


def test_each_step_deletes_the_same_number_of_pixels():
    images, seen = torch.rand(1, 3, 8, 8), []

    def count(batch):
        seen.append((batch != images).any(dim=1).sum().item())
        return torch.zeros(1, 2)

    faithfulness.curves(count, images, torch.rand(1, 8, 8), torch.tensor([0]), steps=4)
    assert seen[::2] == [0, 16, 32, 48, 64]


def test_area_is_that_under_the_line():
    assert faithfulness.area(torch.tensor([[1.0, 0.0, 0.0]])).item() == pytest.approx(0.25)


def test_the_centred_control_is_highest_in_the_middle():
    maps = faithfulness.centred(torch.zeros(2, 3, 9, 9))
    assert maps.shape == (2, 9, 9)
    assert maps[0].argmax().item() == 9 * 4 + 4
