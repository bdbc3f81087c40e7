import math
import re

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from common.networks import doctor
from common.networks.activations import SquareLeaky
from common.networks.normalized import Normalized
from common.training.watch import dead_batch_norms


def maps(scale, seed=0):
    return scale * torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_the_forecast_is_what_the_first_step_puts_out_and_leaves_no_trace():
    torch.manual_seed(0)
    network = Normalized(resnet18(num_classes=3))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = doctor.forecast(network.eval(), images)["blocks"]
    after = network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not network.training
    logits = network.train()(images)
    assert outputs["fc"]["peak"] == logits.abs().max().item()
    assert outputs["fc"]["std"] == pytest.approx(logits.std(correction=0).item(), rel=1e-5)
    assert [*outputs][:4] == ["conv1", "bn1", "relu", "maxpool"]
    # This ReLU is used twice: its peak is the larger of the two.
    assert outputs["layer1.0.relu"]["peak"] >= outputs["layer1.0"]["peak"]


@pytest.mark.parametrize(("scale", "peak"), [(7e4, 7e4), (1e39, math.inf)])
def test_a_forecast_comes_to_its_largest_peak_and_the_first_beyond_fp16(scale, peak):
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        network[2].weight.zero_()
        network[2].bias.copy_(torch.tensor([scale, 1.0]))
    found = doctor.forecast(network, torch.ones(2, 4), re.compile("0|2"))
    assert (found["peak"], found["module"], found["beyond_fp16"]) == (peak, "2", "2")
    assert list(found["blocks"]) == ["0", "2"]
    assert found["infinite_from"] is None


def test_statistics_equal_torchs_also_where_squares_overflow():
    values = torch.randn(500, generator=torch.Generator().manual_seed(0)) * 1e30
    summary = doctor.tensor_statistics(values)
    exact = values.double()
    assert summary["peak"] == exact.abs().max().item()
    assert summary["mean"] == pytest.approx(exact.mean().item(), rel=1e-9)
    assert summary["variance"] == pytest.approx(exact.var(correction=0).item(), rel=1e-9)
    assert summary["norm"] == pytest.approx(exact.norm().item(), rel=1e-9)
    assert summary["non_finite"] == 0


def test_statistics_of_values_that_are_not_finite():
    summary = doctor.tensor_statistics(torch.tensor([1.0, -3.0, math.nan, 2.0]))
    assert (summary["peak"], summary["non_finite"]) == (3, 0.25)
    zeros = [doctor.tensor_statistics(sign * torch.zeros(3))["peak"] for sign in (1, -1)]
    assert [str(peak) for peak in zeros] == ["0.0"] * 2
    assert doctor.tensor_statistics(torch.tensor([1.0, -math.inf]))["peak"] == math.inf


# ---------------------------------------------------------------------- dead layers and networks


def test_an_infinite_variance_gives_zero_output_and_gradients_that_are_not_finite():
    norm, x = nn.BatchNorm2d(4), maps(1e20).requires_grad_()
    output = norm(x)
    output.backward(maps(1e19, 1))
    assert norm.running_var.isinf().all()
    assert not output.any()
    assert x.grad.isnan().all()
    assert norm.weight.grad.isnan().all()


def test_the_term_that_makes_them_so_is_infinity_times_zero():
    found = doctor.backward_terms(maps(1e20), maps(1e19, 1))
    assert math.isinf(found["variance_fp32"])
    assert not math.isfinite(found["sum_fp32"])
    assert found["inverse_deviation_fp32"] == found["output_peak_fp32"] == 0
    assert math.isnan(found["factor_fp32"])
    assert not found["finite_in_fp32"]
    # In float64 the same batch norm works as usual.
    assert found["finite_in_fp64"]
    assert found["variance_fp64"] == pytest.approx(1e40, rel=0.5)
    assert found["factor_fp64"] == pytest.approx(
        found["sum_fp64"] / found["variance_fp64"] / (8 * 6 * 6), rel=1e-6
    )


def test_a_gradient_of_an_ordinary_size_stays_finite_at_an_infinite_variance():
    found = doctor.backward_terms(maps(1e20), maps(1e-3, 1))
    assert math.isinf(found["variance_fp32"])
    assert found["factor_fp32"] == 0
    assert found["finite_in_fp32"]


def test_the_border_is_the_peak_whose_16th_power_is_the_largest_number():
    border = doctor.BORDER_PEAK
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
    assert doctor.constant_share(values) == 0.25
    assert doctor.constant_share(torch.ones(5)) == 1
    assert doctor.constant_share(torch.arange(5.0)) == 0


@pytest.mark.parametrize(("scale", "is_dead"), [(1, False), (1e21, True)])
def test_a_first_pass_and_a_forecast_tell_whether_anything_gets_through(scale, is_dead):
    pool = (nn.AdaptiveAvgPool2d(2), nn.Flatten())
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), *pool, nn.Linear(16, 5))
    images = scale * torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6) % 5
    found = doctor.first_pass(network, images, labels, re.compile("0|1"))
    assert list(found["peaks"]) == ["0", "1"]
    assert found["infinite_from"] == found["dead_from"] == ("1" if is_dead else None)
    assert found["dead_share"] == float(is_dead)
    bias = network[-1].bias.expand(6, 5)
    of_bias = nn.functional.cross_entropy(bias, labels).item()
    assert (found["first_loss"] == pytest.approx(of_bias, rel=1e-6)) == is_dead
    forecast = doctor.forecast(network, images)
    assert [forecast[key] for key in ("infinite_from", "dead_from")] == [found["dead_from"]] * 2
    assert forecast["blocks"]["1"]["constant"] == float(is_dead)


def test_a_dead_layer_that_others_pass_by_leaves_the_network_alive():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.dead, self.alive, self.last = (nn.BatchNorm2d(4) for _ in range(3))
            nn.init.zeros_(self.last.weight)  # its output is constant, as in a new block

        def forward(self, images):
            return self.dead(1e21 * images) + self.alive(images) + self.last(images)

    found = doctor.forecast(Both(), maps(1))
    assert (found["infinite_from"], found["dead_from"]) == ("dead", None)


def test_batch_norms_in_float64_survive_and_else_are_the_same():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    x = maps(1)[:, :3]
    wanted = plain(x)
    exact = doctor.with_float64_batch_norms(plain)
    torch.testing.assert_close(exact(x), wanted, rtol=1e-4, atol=1e-5)
    exact(1e25 * x)
    assert dead_batch_norms(exact) == []


def test_an_input_that_is_infinite_is_no_dead_layer():
    norm, x = nn.Sequential(nn.BatchNorm2d(4)), maps(1)
    x[0, 0, 0, 0] = math.inf
    norm(x)
    assert norm[0].running_var[0].isnan()
    assert dead_batch_norms(norm) == []
