import numpy as np
import pytest
import torch
from skimage.feature import hog

from common.networks import features
from common.networks.vgg import VGG16Features
from common.networks.weights import random_vgg16


def test_colour_histograms_count_the_central_pixels():
    squares = np.zeros((2, 6, 6, 3), np.uint8)
    squares[0, 1:5, 1:5] = (255, 0, 0)  # hue 0, saturation and value full
    squares[1, 1:5, 1:3] = 255  # no hue and no saturation, value full
    counts = features.colour_histograms(squares, 4)
    assert counts.sum(1).tolist() == [16, 16]
    assert counts[0, 7 * 4 + 3] == 16
    assert counts[1, [0, 3]].tolist() == [8, 8]


@pytest.mark.parametrize(("size_px", "cell_px"), [(32, 4), (37, 4), (64, 8)])
def test_hog_features_are_scikit_images_of_the_central_square(size_px, cell_px):
    squares = np.random.default_rng(0).integers(0, 256, (2, 65, 65, 3), dtype=np.uint8)
    start = (65 - size_px) // 2
    central = squares[1, start : start + size_px, start : start + size_px]
    cells = {"pixels_per_cell": (cell_px, cell_px), "cells_per_block": (2, 2)}
    wanted = hog(central, orientations=9, channel_axis=-1, **cells)
    assert np.allclose(features.hog_features(squares, size_px)[1], wanted, atol=1e-6)


@torch.inference_mode()
def test_vgg_features_are_means_and_maxima_of_its_own_maps():
    network = VGG16Features(random_vgg16(seed=0, want_lpips=False), ["conv2_1", "relu3_3"])
    images = torch.rand(3, 3, 40, 48)
    pooled = features.vgg_features(network, images)
    assert {tap: values.shape for tap, values in pooled.items()} == {
        "conv2_1": (3, 2, 128),
        "relu3_3": (3, 2, 256),
    }
    for index, image in enumerate(images):
        for tap, (maps,) in network(image).items():
            wanted = torch.stack([maps.mean((1, 2)), maps.amax((1, 2))])
            assert torch.allclose(pooled[tap][index], wanted, rtol=1e-4, atol=1e-5)


def test_the_nearest_is_by_l1_and_the_first_of_equals():
    references = torch.tensor([[0.0, 3.1], [2.0, 2.0], [2.0, 2.0]])
    queries = torch.tensor([[0.0, 0.0], [2.0, 1.0]])  # by L2 the first would be nearest to 1
    assert features.nearest(queries, references).tolist() == [0, 1]
    many = torch.rand(1500, 8)
    assert torch.equal(features.nearest(many, many), torch.arange(1500))
    distances = (many[:40, None] - many[None, 40:]).abs().sum(2)
    assert torch.equal(features.nearest(many[:40], many[40:]), distances.argmin(1))
