import torch
from torchvision.transforms.v2.functional import normalize

from common.networks.normalized import Normalized


def test_normalised_network_sees_imagenet_statistics():
    images = torch.rand(2, 3, 5, 5)
    seen = Normalized(torch.nn.Identity())(images)
    wanted = normalize(images, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(seen, wanted)


def test_normalisation_is_no_part_of_the_state():
    network = Normalized(torch.nn.Linear(1, 1))
    assert set(network.state_dict()) == {"network.weight", "network.bias"}
