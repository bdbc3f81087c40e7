import math
from functools import partial

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from benchmarks.problem1 import lpips_package
from common.data import images as data
from common.errors import UserError
from common.networks import losses
from common.networks.losses import Calibrated
from common.networks.vgg import LAYERS, VGG16Features
from tests.conftest import image
from tests.networks.test_vgg import plain_maps


def compared(network, images, pairs):
    features = partial(losses.features_of, network)
    return losses.compare(losses.registry(network), features, images, pairs)


def test_pixel_losses_by_hand():
    a = torch.zeros(3, 2, 2)
    b = torch.zeros(3, 2, 2)
    b[0, 0, 0] = 12 / 255
    values = losses.pixel_losses(a, b)
    assert values["l1"] == pytest.approx(1.0)
    assert values["l2"] == pytest.approx(12.0)


def test_psnr_and_ssim_equal_scikit_image():
    a, b = image(0), image(1)
    arrays = [picture.permute(1, 2, 0).numpy() for picture in (a, b)]
    l2 = losses.pixel_losses(a, b)["l2"]
    assert losses.psnr(l2) == pytest.approx(
        peak_signal_noise_ratio(*arrays, data_range=1), rel=1e-6
    )
    expected = structural_similarity(
        *arrays,
        channel_axis=-1,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert losses.ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_wrapped_losses_break_the_inequality_that_all_numbers_keep():
    for photo in data.embedded_photos().values():
        original, moved = data.to_tensor(photo)[..., :-1], data.to_tensor(photo)[..., 1:]
        wrapped = losses.wrapped_uint8_losses(photo[:, :-1], photo[:, 1:])
        values = losses.pixel_losses(original, moved)
        assert values["l2"] >= values["l1"] ** 2
        assert wrapped["l2_uint8"] < wrapped["l1_uint8"] ** 2
        steps = photo[:, :-1].astype(int) - photo[:, 1:]
        assert wrapped["l1_uint8"] == pytest.approx((steps % 256).mean())
        assert wrapped["l2_uint8"] == pytest.approx((steps**2 % 256).mean())
        assert values["l1"] == pytest.approx(np.abs(steps).mean(), rel=1e-5)
        assert values["l2"] == pytest.approx((steps**2).mean(), rel=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("which", ["random_weights", "real_weights"])
def test_losses_of_all_31_layers_equal_plain_vgg16(which, request):
    weights = request.getfixturevalue(which)
    a, b = image(0), image(1)
    network = VGG16Features(weights, list(LAYERS))
    values = compared(network, {"a": a, "b": b}, [("a", "b")])["a", "b"]
    maps_a, maps_b = plain_maps(weights, a), plain_maps(weights, b)
    assert network.layers == list(LAYERS)
    assert len(LAYERS) == 31
    assert maps_a["conv5_3"].min() < 0  # the value before the ReLU
    for name in network.layers:
        difference = (maps_a[name] - maps_b[name]).double()
        assert values[name] == pytest.approx(difference.square().mean().item(), rel=1e-5)
        assert values[f"mae_{name}"] == pytest.approx(difference.abs().mean().item(), rel=1e-5)


@torch.inference_mode()
def test_lpips_equals_the_lpips_package(real_weights):
    package = lpips_package(real_weights)
    photos = [data.to_tensor(photo)[:, :96, :112] for photo in data.embedded_photos().values()]
    images = dict(enumerate([photos[0], photos[0].roll(-1, dims=-1), *photos[1:4]]))
    pairs = [(0, i) for i in range(1, len(images))]
    network = VGG16Features(real_weights, ["relu1_2"])
    for (a, b), values in compared(network, images, pairs).items():
        expected = package(images[a][None], images[b][None], normalize=True).item()
        assert values["lpips"] == pytest.approx(expected, rel=1e-4)


def test_lpips_of_features_of_zero_length_is_a_number():
    nothing, something = torch.zeros(1, 8, 2, 2), torch.ones(1, 8, 2, 2)
    assert losses.lpips_layer(nothing, nothing, torch.ones(8)) == 0
    assert losses.lpips_layer(nothing, something, torch.ones(8)) == pytest.approx(1)


def test_identical_images_have_no_loss_and_losses_are_symmetric(random_weights):
    images = {"a": image(0), "twin": image(0), "b": image(1)}
    same, there, back = ("a", "twin"), ("a", "b"), ("b", "a")
    network = VGG16Features(random_weights, ["relu1_2", "conv3_1", "relu5_3"])
    values = compared(network, images, [same, there, back])
    assert set(values[same].values()) == {0.0}
    assert list(values[same]) == list(losses.registry(network))
    assert values[there] == values[back]
    assert min(values[there].values()) > 0
    assert losses.psnr(0.0) == math.inf
    assert losses.ssim(image(0), image(0)) == 1


# -------------------------------------------------------------------------------------- calibration


RAW = np.random.default_rng(0).uniform(1, 3, (5, 2, 3))  # pictures, pairs, losses
OTHERS = [(i, j) for i in range(5) for j in range(i)]
UNRELATED = np.random.default_rng(1).uniform(50, 90, (len(OTHERS), 3))


def calibrated(raw=RAW, unrelated=UNRELATED, others=OTHERS):
    return Calibrated(["shift", "noise"], ["l1", "l2", "relu1_2"], raw, unrelated, others)


def test_unrelated_pairs_average_1():
    pairs = np.broadcast_to(UNRELATED.mean(0), (5, 2, 3))
    np.testing.assert_allclose(calibrated(pairs).relative, 1)


def test_a_row_holds_the_means_over_pictures():
    row = calibrated().row("noise", "l2")
    assert row["raw"] == pytest.approx(RAW[:, 1, 1].mean())
    assert row["relative"] == pytest.approx(RAW[:, 1, 1].mean() / UNRELATED[:, 1].mean())
    assert row["low"] < row["relative"] < row["high"]
    assert calibrated().rows("noise")["l2"] == row


def test_a_resample_takes_another_picture_from_itself(monkeypatch):
    drawn = np.array([0, 0, 2, 4, 4])
    counts = np.bincount(drawn, minlength=5) / 5
    monkeypatch.setattr(losses, "resample_weights", lambda _: counts[None])
    pairs = [(i, j) for i in drawn for j in drawn if i > j]
    yardstick = np.mean([UNRELATED[OTHERS.index(pair)] for pair in pairs], axis=0)
    np.testing.assert_allclose(calibrated().resampled[0], RAW[drawn].mean(0) / yardstick)


def test_references_count_alike_in_every_resample():
    found = calibrated(unrelated=UNRELATED[:5], others=[(i, None) for i in range(5)])
    weights = losses.resample_weights(5)
    expected = np.einsum("bn,npl->bpl", weights, RAW) / (weights @ UNRELATED[:5])[:, None]
    np.testing.assert_allclose(found.resampled, expected)


def test_one_picture_has_no_interval():
    row = calibrated(RAW[:1], UNRELATED[:2], [(0, None), (0, None)]).row("shift", "l1")
    assert np.isnan([row["low"], row["high"]]).all()


def test_a_yardstick_of_zero_is_refused():
    with pytest.raises(UserError, match="l1 is 0 between unrelated pictures"):
        calibrated(unrelated=UNRELATED * [0, 1, 1])
