"""The solved last layer is ridge regression's, best.pt gets it once, and runs tell of it."""

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from common.training import head
from common.training.evaluation import evaluate
from common.training.run import Run, Saver
from tests.training import test_loop as tiny


@pytest.mark.parametrize("count", [12, 60])  # fewer and more than features
@pytest.mark.parametrize("strength", [0.1, 3, 10.0, 30])
def test_ridge_is_the_closed_form_and_scikit_learns_on_standardised_features(count, strength):
    torch.manual_seed(0)
    features, queries = (torch.randn(rows, 20) * torch.rand(20) + 3 for rows in (count, 200))
    labels = torch.arange(count) % 3
    mean, std = features.mean(0), features.std(0, correction=0)
    known, asked = ((part.double() - mean) / std for part in (features, queries))
    targets = torch.nn.functional.one_hot(labels).double()
    gram = known.T @ known + strength * torch.eye(20)
    weights = torch.linalg.solve(gram, known.T @ (targets - targets.mean(0)))
    wanted = (asked @ weights + targets.mean(0)).argmax(1)
    (layer,) = head.ridge_layers(features, targets.float(), [strength])
    answers = torch.nn.functional.linear(queries, *layer).argmax(1)
    assert torch.equal(answers, wanted)
    assert len(answers.unique()) == 3
    scaled, known = StandardScaler().fit(features).transform, RidgeClassifier(alpha=strength)
    assert known.fit(scaled(features), labels).predict(scaled(queries)).tolist() == wanted.tolist()


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
