from collections import Counter

import pytest
import torch
from torch import nn

from common.networks import activations, timing

POWERS = {"cube": (lambda x: x**3, (1, 3), (1, 3)), "half": (lambda x: 0.5 * x, (0.5, 1), (0.5, 1))}


def test_the_derivative_is_autograds_and_leaves_x_alone():
    x = torch.tensor([-1.0, 0.5, 2.0])
    assert activations.derivative(torch.square, x).tolist() == [-2, 1, 4]
    assert not x.requires_grad


def test_moments_are_those_of_their_definition():
    values = torch.tensor([0.0, 1.0, 1.0, 4.0], dtype=torch.float64)
    about_mean = values - 1.5
    variance = about_mean.square().mean()
    wanted = {"mean": 1.5, "variance": variance.item()}
    wanted["kurtosis"] = (about_mean.pow(4).mean() / variance**2).item()
    assert activations.moments(values) == pytest.approx(wanted)


def test_what_is_measured_comes_near_the_closed_form_and_depends_on_the_seed_alone():
    rows = activations.normal_moments(POWERS, (1.0, 2.0), 200_000, seed=0)
    assert [(row["function"], row["deviation"]) for row in rows] == [
        (name, deviation) for deviation in (1.0, 2.0) for name in POWERS
    ]
    for row in rows:
        exact = row["closed_form"]["variance"]
        assert row["measured"]["variance"] == pytest.approx(exact, rel=0.05)
    assert rows == activations.normal_moments(POWERS, (1.0, 2.0), 200_000, seed=0)


def test_shapes_are_those_of_the_modules_of_a_kind():
    def build():
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.ReLU(), nn.ReLU())

    shapes = timing.output_shapes(build, nn.ReLU, (3, 10, 12))
    assert shapes == Counter({(4, 8, 10): 1, (4, 4, 5): 2})
    rows = timing.costs_by_shape({"ReLU": torch.relu}, shapes, 2, 1, torch.device("cpu"))
    assert [(row["shape"], row["times"]) for row in rows] == [((4, 8, 10), 1), ((4, 4, 5), 2)]
    assert rows[0]["bytes"] == {"ReLU": 2 * 4 * 2 * 320}


def test_the_ratio_of_costs_weighs_rows_by_how_often_they_occur():
    rows = [
        {"times": 1, "seconds": {"f": 2.0, "g": 1.0}},
        {"times": 3, "seconds": {"f": 1.0, "g": 3.0}},
    ]
    assert timing.cost_ratio(rows, "seconds", "f", "g") == 0.5
