from dataclasses import replace

import pytest
import torch

import problem2_flowers as p2
from common.data import streams
from common.data.augment import Augmentation, Draws, random_crops

CPU = torch.device("cpu")


def draws(images, seed=0):
    return Draws(seed, streams.AUGMENT, 0, 0, images, CPU)


def covered(block, images, seed=0):
    return block(images, draws(len(images), seed))


def grey(images=400, height=40, width=50):
    return torch.full((images, 3, height, width), 2.0)  # outside the range of the noise


BLOCK = p2.NoiseBlock(prob=1.0, area_low=0.1, area_high=0.3)


def test_the_input_is_not_written_to():
    images = grey(4)
    before = images.clone()
    noisy = covered(BLOCK, images)
    assert torch.equal(images, before)
    assert noisy.data_ptr() != images.data_ptr()


def test_blocks_are_rectangles_of_random_place_shape_and_area():
    inside = (covered(BLOCK, grey()) != 2).all(1)
    rows, columns = inside.any(2), inside.any(1)
    assert torch.equal(inside, rows[:, :, None] & columns[:, None, :])
    for side in (rows, columns):  # one span, no gaps
        edges = side.int().diff(dim=1, prepend=side.new_zeros(len(side), 1).int())
        assert ((edges == 1).sum(1) == 1).all()
    area = inside.float().mean((1, 2))
    assert 0.08 < area.min() < 0.13
    assert 0.27 < area.max() < 0.33
    assert area.mean() == pytest.approx(0.2, abs=0.01)
    ratio = (rows.sum(1) / 40) / (columns.sum(1) / 50)
    assert ratio.min() < 0.6
    assert ratio.max() > 1.6
    hit = inside.float().mean(0)
    assert (hit > 0).float().mean() > 0.98  # nearly every place, bar a corner
    assert hit[20, 25] < 0.6


@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_how_many_images_are_covered(prob):
    changed = (covered(replace(BLOCK, prob=prob), grey()) != 2).any(dim=(1, 2, 3))
    assert changed.float().mean().item() == pytest.approx(prob, abs=0.08)


@pytest.mark.parametrize(("kind", "deviation"), [("uniform", 12**-0.5), ("gaussian", 0.24)])
def test_noise_is_of_its_kind_and_in_range(kind, deviation):
    flags = ("--noise", kind, "--noise-prob", "1")
    block = p2.noise_block(p2.make_parser().parse_args([*flags]))
    noisy = covered(block, grey())
    noise = noisy[noisy != 2]
    assert 0 <= noise.min() < noise.max() <= 1
    assert noise.mean().item() == pytest.approx(0.5, abs=0.01)
    assert noise.std().item() == pytest.approx(deviation, abs=0.01)


def test_the_augmentation_draws_the_same_with_it_and_without():
    def augmented(block):
        own, augmentation = draws(6), Augmentation(cutmix_prob=1, block=block)
        crops = random_crops(augmentation.crop_area_min, own)
        varied = augmentation.vary(images, crops, 16, own)
        return augmentation.mix(varied, torch.eye(6), own)[:2]

    images = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8)
    (whole, targets), (noisy, noisy_targets) = augmented(None), augmented(BLOCK)
    same = (whole == noisy).all(1).float().mean((1, 2))
    assert 0.65 < same.min() < same.max() < 0.95  # all pixels outside the rectangles
    assert torch.equal(targets, noisy_targets)
