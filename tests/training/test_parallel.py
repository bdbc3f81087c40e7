from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common import job
from common.data import streams
from common.data.augment import Augmentation, Draws
from common.errors import UserError
from common.training import loop, parallel, precision
from common.training.parallel import launch
from common.training.run import Run, load_stopped
from tests.training import test_loop as tiny

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Speckle:
    """Put noise on some images of a batch, drawn in the way of Problem 2's noise block."""

    share: float

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        hit = draws.another(streams.BLOCK).uniform(0, 1, 1, 1, 1) < self.share
        generator = draws.another(streams.BLOCK_NOISE).on_device()
        return torch.where(hit, torch.rand(images.shape, generator=generator), images)


RECIPE = replace(tiny.RECIPE, augmentation=Augmentation(cutmix_prob=0.7, block=Speckle(0.5)))


def quiet_network():
    """A network that all processes compute alike: batch norm in eval mode, no dropout."""
    net = tiny.network()
    net[1].eval()
    net[1].train = lambda *_: net[1]
    net[3].p = 0.0
    return net


def one_step(recipe):
    """The results of a step on 11 images and of an evaluation in this process."""
    parallel.start(CPU)
    run = Run(quiet_network(), recipe, CPU)
    run.step = 3
    batch = loop.process_batch(run, tiny.packed(), torch.arange(11))
    loop.train_step(run, tiny.packed(), torch.arange(11), 1.5)
    gradients = [parameter.grad.numpy() for parameter in run.network.parameters()]
    evaluation = loop.evaluate(quiet_network(), tiny.packed(), recipe, CPU)
    bf16_seconds = (0.5, 2.0)[job.rank()]
    precision.Example.seconds = lambda *_: {"fp32": 1.0, "bf16": bf16_seconds}
    chosen = precision.choose_precision("auto", precision.Example(nn.Identity, 2, 8, CPU))
    parallel.stop()
    return {
        "batch": [part.numpy() for part in batch[:2]],  # a tensor would end with its process
        "gradients": gradients,
        "sums": run.sums,
        "evaluation": evaluation,
        "precision": chosen.name,
    }


@pytest.fixture(scope="module")
def by_one():
    with pytest.MonkeyPatch.context() as monkeypatch:  # `one_step` sets it for its own process
        monkeypatch.setattr(precision.Example, "seconds", None)
        yield one_step(RECIPE)


@pytest.fixture(scope="module")
def by_two():
    return launch(2, one_step, RECIPE)


def test_two_processes_train_on_the_images_and_targets_of_one(by_one, by_two):
    images, targets = by_one["batch"]
    for rank in range(2):
        share_of_images, share_of_targets = by_two[rank]["batch"]
        np.testing.assert_array_equal(share_of_images, images[rank::2])
        np.testing.assert_array_equal(share_of_targets, targets[rank::2])
    assert len(images) == 11
    assert ((targets > 0).sum(axis=1) == 2).any()  # cutmix mixed some images


def test_the_gradient_of_two_processes_equals_that_of_one(by_one, by_two):
    for rank in range(2):
        for gradient, wanted in zip(by_two[rank]["gradients"], by_one["gradients"], strict=True):
            np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-6)
        sums, wanted = by_two[rank]["sums"], by_one["sums"]
        assert sums["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert sums["top1"] == wanted["top1"]
        assert sums["images"] == 11


def test_evaluation_of_two_processes_equals_that_of_one(by_one, by_two):
    wanted = by_one["evaluation"]
    for rank in range(2):
        evaluation = by_two[rank]["evaluation"]
        assert evaluation["loss"] == pytest.approx(wanted["loss"], rel=1e-6)
        for key in ("top1", "top5", "correct", "images"):
            assert evaluation[key] == wanted[key]


def test_the_first_process_decides_the_precision_for_all(by_two):
    # The second process measured that bf16 is half as fast as fp32.
    assert [by_two[rank]["precision"] for rank in range(2)] == ["bf16", "bf16"]


def fit_in(folder, epochs):
    parallel.start(CPU)
    tiny.train(folder, replace(RECIPE, epochs=epochs, batch_size=6))
    parallel.stop()


def test_a_checkpoint_of_two_processes_loads_in_one_and_goes_on(tmp_path):
    launch(2, fit_in, tmp_path, 2)
    saved = load_stopped(tmp_path)
    assert saved["epoch"] == 2
    net, best = tiny.network(), tiny.state(tmp_path, "best.pt")
    net.load_state_dict(best["network"])  # no "module." before names
    # These weights give the same val results as the processes together.
    on_val = loop.evaluate(net, tiny.packed(7, 1), RECIPE, CPU)
    row = saved["history"][best["epoch"] - 1]
    assert on_val["loss"] == pytest.approx(row["val_loss"], rel=1e-5)
    net, history = tiny.train(tmp_path, replace(RECIPE, epochs=2, batch_size=6))
    assert len(history) == 2


def test_a_step_of_one_image_in_each_process_is_refused(place):
    place(0, 2)
    with pytest.raises(UserError, match="a step of 3 for 2 processes, but batch norm needs 2"):
        loop.check_steps(tiny.packed(), RECIPE)
    loop.check_steps(tiny.packed(), replace(RECIPE, batch_size=6))


def test_data_parallel_is_asked_for_by_gpus(monkeypatch):
    made = {}
    monkeypatch.setattr(nn, "DataParallel", lambda _, device_ids: made.update(ids=device_ids))
    parallel.wrap(nn.Linear(1, 1), torch.device("cuda"), 2)
    assert made == {"ids": [0, 1]}
