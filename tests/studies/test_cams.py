from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data.packed import Packed
from common.data.sets import DrawnSet
from common.studies import cams

SIDE_PX = 32


@pytest.fixture(scope="module")
def setup():
    """Twelve drawn flowers, packed a little larger than the network's input."""
    source = DrawnSet("test", 12, 3, seed=0)
    test = Packed(np.zeros((12, 36, 36, 3), np.uint8), torch.arange(12) % 3, np.arange(12), source)
    args = SimpleNamespace(image_size=SIDE_PX)
    return SimpleNamespace(args=args, packed={"test": test})


def test_the_pointing_game_apart_where_the_flower_is_off_centre(setup):
    rows = torch.tensor([7, 2, 11, 0, 5, 9])
    sample = cams.Sample(rows, torch.zeros(6, 3, SIDE_PX, SIDE_PX), rows % 3)
    test = setup.packed["test"]
    masks = torch.stack([cams.flower_mask(test, int(row), SIDE_PX) for row in rows])
    middle = torch.zeros(6, SIDE_PX, SIDE_PX)
    middle[:, SIDE_PX // 2, SIDE_PX // 2] = 1
    maps = {"flower": masks.float(), "ground": 1 - masks.float(), "middle": middle}
    found = cams.play_pointing_game(setup, sample, maps)
    aside = ~masks[:, SIDE_PX // 2, SIDE_PX // 2]
    assert 0 < found["maps_off_centre"] == aside.sum() < 6
    everywhere, off_centre = found["pointing_game"], found["pointing_game_off_centre"]
    for game, of in ((everywhere, masks), (off_centre, masks[aside])):
        assert (game["flower"], game["ground"]) == (100, 0)
        assert game["middle"] == game["centre"]
        assert game["chance"] == pytest.approx(100 * of.float().mean().item())
    assert everywhere["centre"] == pytest.approx(100 * (~aside).float().mean().item())
    assert off_centre["centre"] == 0


def test_areas_and_their_differences_are_of_the_same_images():
    ones, ramp = torch.ones(3, 3), torch.tensor([0.0, 0.5, 1.0]).expand(3, 3)
    spread = torch.tensor([0.0, 0.1, 0.2])[:, None]
    rows = cams.summarise({"grad_cam": ramp + spread, "random": ones + spread})
    assert rows["grad_cam"]["curve"] == pytest.approx([0.1, 0.6, 1.1])
    assert rows["grad_cam"]["mean"] == pytest.approx(0.6)
    assert rows["random"]["low"] < rows["random"]["mean"] < rows["random"]["high"]
    (difference,) = rows["differences"]
    assert (difference.pop("a"), difference.pop("b")) == ("grad_cam", "random")
    # Each image adds the same to both curves: this cancels in the difference, with its spread.
    assert list(difference.values()) == [pytest.approx(-0.5)] * 3
