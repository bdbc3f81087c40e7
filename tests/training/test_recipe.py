"""The effects of the loop's flags, from the command line to the weights."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from common import cli
from common.data.augment import Augmentation
from common.training import loop
from common.training.recipe import add_flags, recipe_of
from common.training.run import Run
from tests.training import test_loop as tiny

CPU = torch.device("cpu")


def parse(*flags):
    parser = cli.Parser(None)
    parser.add("--seed", type=int, default=0, help="of all")
    add_flags(parser)
    parser.set_defaults(image_size=8, epochs=3, batch_size=4, lr=0.02, warmup_epochs=1, jitter=0.3)
    return parser.parse_args(list(map(str, flags)))


def recipe(*flags):
    return recipe_of(parse(*flags), "fp32")


def update(made):
    """Take one step at the peak learning rate: (change of each parameter, parameters before)."""
    network = tiny.network()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    loop.train_step(Run(network, made, CPU), tiny.packed(), torch.arange(4), epoch=1)
    return {
        name: value.detach() - before[name] for name, value in network.named_parameters()
    }, before


def test_every_flag_of_the_recipe_reaches_it():
    made = recipe(
        "--epochs", 7, "--batch-size", 5, "--optimizer", "sgd", "--lr", 0.5, "--weight-decay", 0.2,
        "--warmup-epochs", 2, "--label-smoothing", 0.3, "--ema", 0.4, "--clip-norm", 3,
        "--crop-area", 0.6, "--jitter", 0.7, "--cutmix", 0.8, "--compile",
        "--deterministic", "--randaugment", 5, "--val-interval", 3, "--solve-head",
    )  # fmt: skip
    assert made.as_dict() == {
        "epochs": 7, "batch_size": 5, "image_size_px": 8, "learning_rate": 0.5, "optimizer": "sgd",
        "schedule": "cosine", "weight_decay": 0.2, "warmup_epochs": 2, "label_smoothing": 0.3,
        "ema_decay": 0.4, "clip_norm": 3, "precision": "fp32", "compile": True,
        "deterministic": True, "seed": 0, "crop_area_min": 0.6, "jitter": 0.7, "cutmix_prob": 0.8,
        "randaugment": 5, "val_interval": 3, "block": None, "rate_at": "middle of the step",
        "randaugment_by": "torchvision", "batch_norm_of_average": "recomputed", "solve_head": True,
    }  # fmt: skip
    assert recipe("--epochs", 60).val_interval == 2


def test_a_warm_up_longer_than_the_run_is_shortened_and_the_flags_are_left_alone(capsys):
    args = parse("--epochs", 5, "--warmup-epochs", 9)
    assert recipe_of(args, "fp32").warmup_epochs == 1
    assert capsys.readouterr().out == "--warmup-epochs shortened to 1, a fifth of --epochs 5\n"
    assert args.warmup_epochs == 9


def test_clip_norm_bounds_the_update():
    flags = ("--optimizer", "sgd", "--weight-decay", 0, "--lr", 0.5, "--ema", 0)
    free, _ = update(recipe(*flags))
    clipped, _ = update(recipe(*flags, "--clip-norm", 0.01))
    norms = [
        torch.cat([value.flatten() for value in each.values()]).norm() for each in (free, clipped)
    ]
    # The first step of Nesterov momentum 0.9 is 1.9 times that of plain SGD.
    assert norms[1] == pytest.approx(0.01 * 0.5 * 1.9, rel=1e-3)
    assert norms[0] > 2 * norms[1]
    for name, value in free.items():  # the direction stays
        torch.testing.assert_close(
            clipped[name], value * (norms[1] / norms[0]), rtol=1e-3, atol=1e-6
        )


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_pulls_on_weights_but_not_on_norms_and_biases(optimizer):
    flags = ("--optimizer", optimizer, "--lr", 0.1, "--ema", 0, "--weight-decay")
    without, before = update(recipe(*flags, 0))
    decayed, _ = update(recipe(*flags, 0.5))
    factor = {"adamw": 1.0, "sgd": 1.9}[optimizer]  # SGD adds decay to the gradient
    for name, value in before.items():
        pull = decayed[name] - without[name]
        if name in ("0.weight", "6.weight"):
            torch.testing.assert_close(pull, -0.1 * 0.5 * factor * value, rtol=1e-3, atol=1e-6)
        else:
            assert torch.equal(pull, torch.zeros_like(pull)), name


def test_compile_is_called_once_and_the_checkpoint_has_bare_names(tmp_path, monkeypatch):
    compiled = []

    class Compiled(torch.nn.Module):
        """What torch.compile returns: a wrapper with the prefix `_orig_mod.`"""

        def __init__(self, network):
            super().__init__()
            self._orig_mod = network
            compiled.append(network)

        def forward(self, images):
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    network, _ = tiny.train(tmp_path, replace(tiny.RECIPE, compile=recipe("--compile").compile))
    assert len(compiled) == 1
    assert compiled[0] is network
    best = tiny.state(tmp_path, "best.pt")
    assert set(best["network"]) == set(tiny.network().state_dict())


def test_regularisation_and_size_grow_in_stages():
    grows = replace(tiny.RECIPE, epochs=9, image_size_px=64, stages=3, first_strength=0.5)
    grows = replace(grows, first_size_px=32, augmentation=Augmentation(0.2, 0.4, 0.6))
    sizes = [grows.at(epoch).image_size_px for epoch in range(9)]
    assert sizes == [32, 32, 32, 48, 48, 48, 64, 64, 64]
    assert [grows.strength_at(epoch) for epoch in (0, 3, 8)] == [0.5, 0.75, 1]
    first, last = grows.at(0).augmentation, grows.at(8).augmentation
    assert (first.crop_area_min, first.jitter, first.cutmix_prob) == pytest.approx((0.6, 0.2, 0.3))
    assert last == Augmentation(pytest.approx(0.2), 0.4, 0.6)
    strong = replace(grows, augmentation=Augmentation(randaugment=10))
    assert [strong.at(epoch).augmentation.randaugment for epoch in (0, 3, 8)] == [5, 7.5, 10]
    assert "randaugment" not in grows.as_dict()  # earlier runs keep their identity
    plain = replace(grows, stages=1)
    assert plain.at(0) == plain
    assert plain.as_dict() == replace(plain, first_size_px=0, first_strength=1).as_dict()


def test_dropout_grows_with_the_stages():
    network = tiny.network()
    run = Run(network, replace(tiny.RECIPE, stages=2, first_strength=0.5), torch.device("cpu"))
    steps = loop.endless_steps(run, tiny.packed())  # three per epoch
    assert [network[3].p for _ in islice(steps, 9)] == pytest.approx(6 * [0.05] + 3 * [0.1])


def test_a_run_that_grows_goes_on_to_the_same_weights(tmp_path):
    grows = replace(tiny.RECIPE, stages=3, first_strength=0.3, first_size_px=6)
    tiny.train_an_epoch(tmp_path / "stopped", grows)
    for name in ("stopped", "whole"):
        tiny.train(tmp_path / name, grows)
    best = [tiny.state(tmp_path / name, "best.pt")["network"] for name in ("stopped", "whole")]
    tiny.assert_same(*best)
