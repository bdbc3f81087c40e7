import math

import numpy as np
import pytest
import torch

from common.networks import distortions
from common.networks.distortions import add_noise, rank_losses, translate, unit_noise
from common.networks.losses import pixel_losses
from tests.conftest import image, picture


@pytest.mark.parametrize("shift", [0, 1, 3, 47])
def test_whole_shift_equals_numpy_slicing_bit_for_bit(shift):
    a = image(0)
    array = a.numpy()
    original, cropped = translate(a, shift, "crop")
    np.testing.assert_array_equal(original.numpy(), array[..., : 48 - shift])
    np.testing.assert_array_equal(cropped.numpy(), array[..., shift:])
    original, wrapped = translate(a, shift, "wrap")
    np.testing.assert_array_equal(original.numpy(), array)
    np.testing.assert_array_equal(wrapped.numpy(), np.roll(array, -shift, axis=-1))
    _, replicated = translate(a, shift, "replicate")
    padded = np.pad(array, ((0, 0), (0, 0), (0, shift)), mode="edge")
    np.testing.assert_array_equal(replicated.numpy(), padded[..., shift:])


def test_fractional_shift_moves_a_wave_exactly():
    columns = torch.arange(48, dtype=torch.float64)

    def wave(at):
        return (0.5 + 0.4 * torch.cos(2 * math.pi * 3 * at / 48)).expand(3, 8, 48)

    _, moved = translate(wave(columns), 1.25, "wrap")
    torch.testing.assert_close(moved, wave(columns + 1.25))
    assert [part.shape for part in translate(wave(columns), 2.5, "crop")] == [(3, 8, 48 - 3)] * 2


def test_noise_depends_on_its_key_alone_and_is_clipped():
    shape = torch.Size([3, 64, 64])
    noise = unit_noise(shape, 0, 1, 2)
    assert torch.equal(noise, unit_noise(shape, 0, 1, 2))
    assert not torch.equal(noise, unit_noise(shape, 0, 1, 3))
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    grey, share = add_noise(torch.full(shape, 0.5), 25, noise)
    assert share == 0
    assert ((grey - 0.5) * 255).std().item() == pytest.approx(25, rel=0.02)
    black, share = add_noise(torch.zeros(shape), 25, noise)
    assert share == pytest.approx(0.5, abs=0.02)
    assert black.min() == 0


def test_distortions_cost_the_same_pixel_loss():
    original = image(0)
    noise = unit_noise(original.shape, 0)
    for l2 in (20, 150):
        copies = distortions.distorted(original, l2, noise)
        assert copies.keys() == distortions.DISTORTIONS.keys()
        for name, copy in copies.items():
            assert pixel_losses(original, copy)["l2"] == pytest.approx(l2, rel=0.03), name
    grey = copies["contrast"] - copies["contrast"].mean()
    share = 1 - math.sqrt(150) / 255 / original.std(unbiased=False).item()
    torch.testing.assert_close(grey, share * (original - original.mean()), atol=1e-3, rtol=0)


def test_squared_pixels_rank_all_distortions_alike():
    pictures = [picture(seed) for seed in range(3)]
    losses = {
        "mse": lambda a, b: (a - b).square().mean(),
        "mean": lambda a, b: (a - b).mean().abs(),
    }
    table = rank_losses(losses, iter(pictures))
    assert list(table) == sorted(table, key=lambda name: -table[name]["mean"])
    assert table["mse"]["mean"] == pytest.approx(1, rel=0.03)
    for ratio in table["mse"]["ratios"].values():
        assert ratio["mean"] == pytest.approx(1, rel=0.03)
    # A change of brightness moves the mean far more than a shift does.
    assert table["mean"]["ratios"]["brightness"]["low"] > 5


def test_a_ratio_is_a_geometric_mean_over_pictures_with_its_interval():
    shifts, others = np.full((3, 1, 1), 2.0), np.full((3, 5, 1), 2.0)
    others *= np.array([1, 4, 16])[:, None, None]
    row = distortions.ranking(["a"], np.concatenate([shifts, others], axis=1))["a"]
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((4, 1, 16))
    assert list(row["ratios"]) == list(distortions.DISTORTIONS)
    assert row["ratios"]["blur"] == pytest.approx(
        {key: row[key] for key in ("mean", "low", "high")}
    )
