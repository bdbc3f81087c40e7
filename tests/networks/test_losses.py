import math
from functools import partial

import lpips
import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from common.data import images as data
from common.networks import losses
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


@pytest.mark.filterwarnings("ignore:.*weight:UserWarning")  # lpips calls torchvision the old way
@torch.inference_mode()
def test_lpips_equals_the_lpips_package(real_weights):
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = dict(zip(package.net.state_dict(), real_weights.features.values(), strict=True))
    package.net.load_state_dict(state)
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
