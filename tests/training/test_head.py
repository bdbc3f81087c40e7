"""The solved last layer is ridge regression's, best.pt gets it once, and runs tell of it."""

from dataclasses import replace

import pytest
import torch

from common.networks import baselines
from common.training import head
from common.training.evaluation import evaluate
from common.training.run import Run, Saver
from tests.training import test_loop as tiny


def test_the_layer_classifies_as_ridge_regression_does():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(40, 9, generator=generator) * 5, torch.arange(40) % 4
    asked = torch.rand(30, 9, generator=generator) * 5
    for strength in (3, 30):
        (layer,) = head.ridge_layers(features, torch.eye(4)[labels], [strength])
        wanted = baselines.ridge(features, labels, asked, strength)
        assert torch.equal(torch.nn.functional.linear(asked, *layer).argmax(1), wanted)


def test_a_runs_network_and_file_get_the_layer_once(tmp_path, monkeypatch):
    recipe = replace(tiny.RECIPE, solve_head=True)
    network, _ = tiny.train(tmp_path, recipe)
    before, train, val = tiny.state(tmp_path, "best.pt"), tiny.packed(), tiny.packed(7, 1)
    save = Saver(Run(network, recipe, tiny.CPU), tmp_path, {})
    solved = head.solve_head(save, train, val)
    after, layer = tiny.state(tmp_path, "best.pt"), head.last_layer(network)
    for name in before["network"].keys() - {"6.weight", "6.bias"}:
        assert torch.equal(after["network"][name], before["network"][name])
    assert after["about"] == before["about"]
    on_val = evaluate(network, val, recipe, tiny.CPU)
    assert on_val["top1"] == pytest.approx(solved["val_top1"])
    assert on_val["loss"] == pytest.approx(solved["val_loss"], rel=1e-4)
    monkeypatch.setattr(head, "ridge_layers", None)
    torch.nn.init.zeros_(layer.weight)
    assert head.solve_head(save, train, val) == solved
    assert torch.equal(layer.weight, after["network"]["6.weight"])
