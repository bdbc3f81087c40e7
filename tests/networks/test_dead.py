import math
import re

import pytest
import torch
from torch import nn

from common.networks import dead
from common.networks.resnet36 import ResNet36
from common.networks.square_leaky import SquareLeaky
from common.training.watch import dead_batch_norms

OUTPUTS = re.compile("0|1")


def maps(scale, seed=0):
    return scale * torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_an_infinite_variance_gives_zero_output_and_gradients_that_are_not_finite():
    norm, x = nn.BatchNorm2d(4), maps(1e20).requires_grad_()
    output = norm(x)
    output.backward(maps(1e19, 1))
    assert norm.running_var.isinf().all()
    assert not output.any()
    assert x.grad.isnan().all()
    assert norm.weight.grad.isnan().all()


def test_the_term_that_makes_them_so_is_infinity_times_zero():
    found = dead.backward_terms(maps(1e20), maps(1e19, 1))
    assert math.isinf(found["variance_fp32"])
    assert not math.isfinite(found["sum_fp32"])
    assert found["inverse_deviation_fp32"] == found["output_peak_fp32"] == 0
    assert math.isnan(found["factor_fp32"])
    assert not found["finite_in_fp32"]
    # In float64 the same is an ordinary batch norm.
    assert found["finite_in_fp64"]
    assert found["variance_fp64"] == pytest.approx(1e40, rel=0.5)
    assert found["factor_fp64"] == pytest.approx(
        found["sum_fp64"] / found["variance_fp64"] / (8 * 6 * 6), rel=1e-6
    )


def test_a_gradient_of_an_ordinary_size_stays_finite_at_an_infinite_variance():
    found = dead.backward_terms(maps(1e20), maps(1e-3, 1))
    assert math.isinf(found["variance_fp32"])
    assert found["factor_fp32"] == 0
    assert found["finite_in_fp32"]


def test_the_border_is_the_peak_whose_16th_power_is_the_largest_number():
    border = dead.peak_at_the_border(3)
    assert border == pytest.approx(256, rel=1e-6)
    peak = torch.tensor(border)
    for _ in range(3):
        peak = SquareLeaky()(peak)
    assert torch.isfinite((0.999 * peak).square())
    assert torch.isinf((1.001 * peak).square())


def test_channels_that_are_the_same_everywhere_are_counted():
    values = maps(1)
    values[:, 1] = 3
    values[:, 2] = torch.arange(8).view(8, 1, 1).float()  # differs by image
    assert dead.constant_share(values) == 0.25
    assert dead.constant_share(torch.ones(5)) == 1
    assert dead.constant_share(torch.arange(5.0)) == 0


@pytest.mark.parametrize(("scale", "is_dead"), [(1, False), (1e21, True)])
def test_a_first_pass_tells_whether_anything_gets_through(scale, is_dead):
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    images = scale * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    found = dead.first_pass(network, images, labels, OUTPUTS)
    assert list(found["peaks"]) == ["0", "1"]
    assert found["infinite_from"] == found["dead_from"] == ("1" if is_dead else None)
    assert found["dead_share"] == float(is_dead)
    bias = network[-1].bias.expand(6, 5)
    of_bias = nn.functional.cross_entropy(bias, labels).item()
    assert (found["first_loss"] == pytest.approx(of_bias, rel=1e-6)) == is_dead


def tiny_resnet():
    torch.manual_seed(0)
    return ResNet36(classes=3, residual="sum", width=1 / 16)


def test_steps_without_checks_are_plain_pytorch_and_go_on_after_bad_gradients():
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = (images, torch.tensor([0, 1, 2, 0]))
    network, other = tiny_resnet(), tiny_resnet()
    found = dead.unchecked_steps(network, [batch] * 2, torch.optim.SGD(network.parameters(), 1e-6))
    optimizer, losses = torch.optim.SGD(other.parameters(), 1e-6), []
    for _ in range(2):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(other.train()(images), batch[1])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert found["losses"] == losses
    assert (found["non_finite_gradients"], found["infinite_from"]) == ([], None)
    assert found["tensors"] == len(list(network.parameters()))


def test_a_dead_network_is_taken_apart_at_the_batch_norm_that_makes_gradients_nan():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip
    with torch.no_grad():
        network[-1].weight.mul_(1e21)  # so that the gradient that comes back is large
    images, labels = 1e20 * torch.rand(6, 3, 4, 4), torch.arange(6) % 5
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    found = dead.unchecked_steps(network, [(images, labels)] * 3, optimizer, autopsy=True)
    assert len(found["losses"]) == 2
    assert math.isnan(found["losses"][1])
    assert found["non_finite_gradients"] == ["0.weight", "1.weight"]
    assert found["infinite_from"] == "1"
    assert found["autopsy"]["module"] == "1"
    assert not found["autopsy"]["finite_in_fp32"]
    assert found["autopsy"]["finite_in_fp64"]


def test_batch_norms_in_float64_survive_and_else_are_the_same():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x = maps(1)[:, :3]
    wanted = plain(x)
    exact = dead.with_float64_batch_norms(plain)
    torch.testing.assert_close(exact(x), wanted, rtol=1e-4, atol=1e-5)
    exact(1e25 * x)
    assert dead_batch_norms(exact) == []


def test_an_input_that_is_infinite_is_no_dead_layer():
    norm, x = nn.Sequential(nn.BatchNorm2d(4)), maps(1)
    x[0, 0, 0, 0] = math.inf
    norm(x)
    assert norm[0].running_var[0].isnan()
    assert dead_batch_norms(norm) == []
