from itertools import product

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as reference

from common.data import augment, streams
from common.data.augment import Augmentation, Draws
from common.data.streams import RANDOM_MAPS, mixed_seed

CPU = torch.device("cpu")


class Fixed:
    """Draws that return the given numbers, one after the other."""

    def __init__(self, *values):
        self.values = iter(values)

    def uniform(self, *_):
        return next(self.values)


def batch(images=4, side=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 256, (images, side, side, 3), generator=generator, dtype=torch.uint8)
    return drawn.permute(0, 3, 1, 2)


def draws(images, seed=0, purpose=streams.AUGMENT, epoch=1, step=2):
    return Draws(seed, purpose, epoch, step, images, CPU)


def augmented(augmentation, images, labels):
    own, targets = draws(4), torch.nn.functional.one_hot(labels, 3).float()
    crops = augment.random_crops(augmentation.crop_area_min, own)
    varied = augmentation.vary(images, crops, 8, own)
    return augmentation.mix(varied, targets, own)[:2]


def test_parameters_depend_on_the_key_alone():
    parameters = draws(5).uniform(0, 1, 2)
    assert parameters.shape == (5, 2)
    assert torch.equal(parameters, draws(5).uniform(0, 1, 2))
    assert torch.equal(parameters * 6 - 2, draws(5).uniform(-2, 4, 2))
    for change in ({"seed": 1}, {"purpose": streams.BLOCK}, {"epoch": 2}, {"step": 3}):
        assert not torch.equal(parameters, draws(5, **change).uniform(0, 1, 2)), change


def test_another_purpose_does_not_replay():
    """Its numbers differ from all earlier and later ones; the draws for pixels differ as well."""
    first = draws(50)
    first.uniform(0, 1)
    several = [
        draws(50),
        first,
        first.another(streams.BLOCK),
        first.another(streams.BLOCK_NOISE),
        first.another(streams.BLOCK).another(streams.ORDER),
    ]
    numbers = [each.uniform(0, 1).tolist() for each in several]
    numbers += [torch.rand(50, generator=each.on_device()).tolist() for each in several[1:]]
    everything = [number for stream in numbers for number in stream]
    assert len(set(everything)) > 0.99 * len(everything)  # two of 2^24 numbers may be equal


def test_a_batch_as_a_whole():
    images, labels = batch(), torch.tensor([0, 2, 1, 2])
    before = images.clone()
    augmentation = Augmentation(cutmix_prob=1)
    varied, targets = augmented(augmentation, images, labels)
    assert torch.equal(images, before)
    assert varied.shape == (4, 3, 8, 8)
    assert varied.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= varied.min() < varied.max() <= 1
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    again, _ = augmented(augmentation, images, labels)
    assert torch.equal(varied, again)


@pytest.mark.parametrize(("side", "size"), [(9, 5), (8, 6), (6, 6)])
def test_centre_square_equals_torchvision(side, size):
    images = batch(side=side)
    wanted = reference.center_crop(images, [size, size]).float() / 255
    assert torch.equal(augment.centre_square(images, size), wanted)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_whole_crop_at_the_same_size_keeps_every_pixel(mirrored):
    images = torch.rand(2, 3, 7, 7)
    ones, zeros = torch.ones(2), torch.zeros(2)
    fixed = Fixed(ones, zeros, torch.zeros(2, 2), zeros if mirrored else ones)
    varied = augment.cut_out(images, augment.random_crops(1, fixed), 7)
    torch.testing.assert_close(varied, images.flip(3) if mirrored else images)


def test_a_crop_equals_torchvisions_resized_crop():
    images = torch.rand(1, 3, 8, 8)
    # A quarter of the area, square, in the upper left corner.
    fixed = Fixed(torch.tensor([0.25]), torch.zeros(1), -torch.ones(1, 2), torch.ones(1))
    varied = augment.cut_out(images, augment.random_crops(0.1, fixed), 8)
    wanted = reference.resized_crop(images, 0, 0, 4, 4, [8, 8], antialias=False)
    # At the crop's inner border ours uses neighbouring pixels; torchvision repeats the last pixel.
    torch.testing.assert_close(varied[..., :7, :7], wanted[..., :7, :7])


def test_crops_never_leave_the_image():
    ramp = torch.linspace(0, 1, 16).expand(500, 3, 16, 16)
    varied = augment.cut_out(ramp, augment.random_crops(0.05, draws(500)), 4)
    spread = (varied.amax((1, 2, 3)) - varied.amin((1, 2, 3))).sort().values
    assert spread[0] > 0
    assert 0 <= varied.min() < 0.2
    assert 0.8 < varied.max() <= 1


def test_colour_jitter_equals_torchvision():
    images = 0.2 + torch.rand(3, 3, 6, 6) * 0.4  # torchvision clips after each step
    factors = [torch.tensor([f, 1.1, 0.8]).view(-1, 1, 1, 1) for f in (0.9, 1.2, 0.7)]
    varied = augment.colour_jitter(images, 0.3, Fixed(*factors))
    for i, image in enumerate(images):
        wanted = reference.adjust_brightness(image, factors[0][i].item())
        wanted = reference.adjust_contrast(wanted, factors[1][i].item())
        wanted = reference.adjust_saturation(wanted, factors[2][i].item())
        torch.testing.assert_close(varied[i], wanted, atol=2e-3, rtol=0)  # other luma digits


def test_cutmix_mixes_targets_by_the_pixels_that_were_exchanged():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 3, 20, 20)
    targets = torch.eye(6)
    mixed, mixed_targets, pasted = augment.cutmix(images, targets, 1, draws(6))
    areas = []
    for i in range(6):
        partner = (i - 1) % 6
        area = (mixed[i, 0] == partner).float().mean()
        areas.append(area.item())
        assert torch.equal(mixed[i].unique(), torch.tensor([partner, i]).sort().values.float())
        torch.testing.assert_close(mixed_targets[i, partner], area)
        torch.testing.assert_close(mixed_targets[i, i], 1 - area)
    assert np.std(areas) > 0.05
    torch.testing.assert_close(augment.mix_maps(images, pasted), mixed)
    cells = augment.mix_maps(images[..., ::10, ::10], pasted)  # of 10 x 10 pixels
    torch.testing.assert_close(cells, torch.nn.functional.avg_pool2d(mixed, 10))


def test_random_operations_are_drawn_an_image_by_the_key_and_leave_torchs_generator_alone():
    images, labels = batch()[:1].expand(4, 3, 9, 9), torch.tensor([0, 2, 1, 2])  # one, four times
    strong, before = Augmentation(1, 0, cutmix_prob=0, randaugment=9), torch.get_rng_state()
    varied, again = (augmented(strong, images, labels)[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(varied, again)
    assert len({image.sum().item() for image in varied}) == 4
    assert 0 <= varied.min() < varied.max() <= 1


# ------------------------------------------------------------------------------------------ streams


def test_each_purpose_has_a_number_of_its_own():
    named = {name: number for name, number in vars(streams).items() if name.isupper()}
    assert len(set(named.values())) == len(named)


def test_every_part_of_a_key_changes_the_stream():
    keys = list(product((0, 1, 2**40), range(RANDOM_MAPS + 1), (0, 1, 7), (0, 1, 7)))
    assert len({mixed_seed(*key) for key in keys}) == len(keys)


def test_seeds_are_of_63_bits_and_the_same_for_ever():
    """A change here means that seeds no longer give the published noise and trainings."""
    assert mixed_seed(1, 2) == 7764949442709860949
    assert mixed_seed(2**32 + 5, 1) == 6058759078026276609
    assert all(0 <= mixed_seed(seed, 3) < 2**63 for seed in range(100))
