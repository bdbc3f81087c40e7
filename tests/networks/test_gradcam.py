import cv2
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn
from torchvision.models import efficientnet_v2_s

from common.errors import UserError
from common.networks import gradcam


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    net = efficientnet_v2_s(num_classes=5).eval()
    net.classifier[1].weight.data.mul_(1e5)  # or the package's epsilon of 1e-7 matters
    return net


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def scaled(maps):
    """Scale maps to [0, 1] by their smallest and largest value, as the grad-cam package does."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


@pytest.mark.parametrize("layer", ["features.4", "features.6", "features.7"])
def test_maps_equal_the_grad_cam_packages(network, images, layer):
    classes = torch.tensor([0, 3, 4])
    module = gradcam.feature_layer(network, layer, 96)
    maps = gradcam.grad_cam(network, module, images, classes)
    with GradCAM(model=network, target_layers=[module]) as package:
        targets = [ClassifierOutputTarget(int(label)) for label in classes]
        wanted = torch.from_numpy(package(input_tensor=images, targets=targets))
    assert maps.shape == wanted.shape == (3, 96, 128)
    assert wanted.amax() > 0.9
    # The package scales maps before it enlarges them, and again afterwards.
    torch.testing.assert_close(scaled(maps), wanted, atol=1e-4, rtol=0)


def test_a_linear_network_by_hand():
    torch.manual_seed(0)
    conv, head = nn.Conv2d(3, 2, 1), nn.Linear(2, 3)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    images = torch.rand(2, 3, 4, 4)
    maps = gradcam.grad_cam(net, conv, images, torch.tensor([2, 0]))
    for i, which in enumerate((2, 0)):
        weights = head.weight[which] / 16  # the mean pool's gradient, averaged over pixels
        wanted = (weights[:, None, None] * conv(images)[i]).sum(0).relu()
        torch.testing.assert_close(maps[i], wanted.detach())


def test_predictions_of_many_images_are_those_of_one_batch():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 1)
    net = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3)).eval()
    images = torch.rand(gradcam.BATCH + 8, 3, 4, 4)
    probabilities, maps = predictions = gradcam.predict_with_cams(net, conv, images)
    logits = net(images).detach()
    torch.testing.assert_close(probabilities, logits.softmax(1))
    assert torch.equal(predictions.classes, logits.argmax(1))
    torch.testing.assert_close(maps, gradcam.grad_cam(net, conv, images, logits.argmax(1)))


def test_hooks_are_removed_also_after_an_error(network, images):
    network.zero_grad()
    layer = gradcam.feature_layer(network, "features.6", 96)
    gradcam.grad_cam(network, layer, images, torch.tensor([0, 1, 2]))
    assert not layer._forward_hooks
    with pytest.raises(RuntimeError):
        gradcam.grad_cam(network, layer, images, torch.tensor([0, 1, 99]))
    assert not layer._forward_hooks
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not images.requires_grad


def test_a_map_without_evidence_is_zero_and_misses():
    conv = nn.Conv2d(3, 1, 1)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    nn.init.constant_(net[4].weight, -1)
    nn.init.constant_(conv.weight, 1)
    nn.init.constant_(conv.bias, 0)
    maps = gradcam.grad_cam(net, conv, torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    assert torch.equal(maps, torch.zeros(2, 8, 8))
    assert gradcam.pointing_game(maps, torch.ones(2, 8, 8, dtype=torch.bool)) == 0


def refused_layer(network, name, size_px):
    with pytest.raises(UserError) as caught:
        gradcam.feature_layer(network, name, size_px)
    return str(caught.value)


def test_a_layer_without_a_map_over_the_image_is_refused(network):
    for name in ("features.9", "classifier", "features.6.x", ""):
        assert "choose from features.0" in refused_layer(network, name, 96)
    squeeze = "features.4.0.block.2"
    message = refused_layer(network, f"{squeeze}.avgpool", 64)
    assert "its map is 1x1 for images of 64 px" in message
    assert "its map is 1x1" in refused_layer(network, "features.6", 32)
    for name, size_px in (("features.5", 32), ("features.7", 33), (squeeze, 64)):  # 2x2, 2x2, 4x4
        assert gradcam.feature_layer(network, name, size_px) is network.get_submodule(name)


def test_map_sizes_are_those_of_a_pass(network, images):
    names = ["features.0", "features.4.0.block.2.fc1", "features.6"]
    sizes = {name: gradcam.map_size(network, name, 96) for name in names}
    assert sizes == {names[0]: (48, 48), names[1]: (1, 1), names[2]: (3, 3)}
    assert network.features[:7](images[:1, :, :, :96]).shape[2:] == sizes["features.6"]


def test_pointing_game_counts_peaks_on_the_mask():
    maps = torch.zeros(4, 6, 6)
    maps[0, 1, 2] = maps[1, 5, 5] = maps[2, 0, 0] = maps[3, 3, 3] = 1
    masks = torch.zeros(4, 6, 6, dtype=torch.bool)
    masks[0, 1, 2] = masks[1, 5, 5] = masks[3, 3, 3] = True
    assert gradcam.pointing_game(maps, masks) == 75


def test_the_peak_of_a_coarse_map_is_at_its_cells_centre():
    coarse = torch.tensor([[[[0.0, 1.0], [0.2, 0.1]]]])
    enlarged = nn.functional.interpolate(coarse, (64, 64), mode="bilinear")[0]
    # Pixels 15 and 48 are the outermost ones that the neighbouring cell still influences.
    assert gradcam.peaks(enlarged).tolist() == [[15, 48]]
    assert cv2.minMaxLoc(enlarged[0].numpy())[3] == (48, 0)  # the first maximum: at the border
    assert gradcam.peaks(torch.eye(5)[None]).tolist() == [[2, 2]]


def test_a_layer_before_an_activation_in_place_has_its_own_map():
    maps = []
    for inplace in (True, False):
        torch.manual_seed(0)
        conv, norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        net = nn.Sequential(conv, norm, nn.SiLU(inplace), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        maps.append(gradcam.grad_cam(net, norm, images, torch.tensor([1, 3])))
    assert torch.equal(*maps)
    assert maps[0].max() > 0


# --------------------------------------------------------------------------- deletion and insertion


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
    """A network of two classes; the first one's probability is linear in the pixels."""

    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, images):
        share = (self.weights * images).sum(dim=(1, 2, 3))[:, None]
        return torch.cat([share, 1 - share], dim=1).log()


def test_of_a_linear_network_the_curves_are_running_sums():
    images = noise(4).double()
    weights = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    weights /= weights.sum()  # so the probability is in [0, 1], as pixels are
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


def test_the_centred_control_is_highest_in_the_middle():
    maps = gradcam.centred_maps(torch.zeros(2, 3, 9, 9))
    assert maps.shape == (2, 9, 9)
    assert maps[0].argmax().item() == 9 * 4 + 4
