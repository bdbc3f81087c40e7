"""Teacher and student see the same views, a file keeps features, and a stopped run goes on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data.augment import Augmentation
from common.data.packed import Packed
from common.data.sets import DrawnSet
from common.networks.normalized import Normalized
from common.networks.weights import random_vgg16
from common.studies import teacher as teaching
from common.training import loop
from common.training.recipe import Recipe
from common.training.run import Run, Saver, load_stopped
from tests.faults.tiny import small_efficientnet
from tests.training import test_loop as tiny

CPU = torch.device("cpu")
CHOSEN = {"layers": ["relu1_2", "relu2_2"], "pooling": "mean and maximum", "size_px": 16}
ROW = {"val_top1": 72.0, "test_top1": 60.0, "chosen": {**CHOSEN, "strength": 30}}
VARIED = Augmentation(crop_area_min=0.3, jitter=0.2, cutmix_prob=0.5)
RECIPE = Recipe(3, 4, 16, 0.01, warmup_epochs=1, ema_decay=0.5, augmentation=VARIED)


@pytest.fixture(autouse=True)
def with_weights(monkeypatch):
    monkeypatch.setattr(teaching, "load_vgg16", lambda *_, **__: random_vgg16(0, False))
    monkeypatch.setattr(teaching, "kept_baselines", lambda _: {teaching.VGG_RIDGE: ROW})


def train_set():
    pixels = np.random.default_rng(0).integers(0, 256, (11, 20, 20, 3), dtype=np.uint8)
    return Packed(pixels, torch.arange(11) % 3, np.arange(11), DrawnSet("train", 11, 3, seed=0))


class Setup:
    """The fields of a Setup that a teacher needs."""

    def __init__(self, folder, seed=5):
        self.args = SimpleNamespace(
            teacher="vgg16", views=2, seed=seed, image_size=16, cache=folder
        )
        self.packed, self.device, self.recipe = {"train": train_set()}, CPU, RECIPE


def batch_of(made, indexes, epoch=0, size_px=16):
    images = train_set().batch(torch.tensor(indexes), CPU)[0]
    return made.views(images, torch.tensor(indexes), epoch, size_px)


def test_what_the_teacher_saw_is_what_the_student_sees(tmp_path, monkeypatch):
    shown, see = [], teaching.seen

    def note(network, about, views):
        shown.append(views)
        return see(network, about, views)

    monkeypatch.setattr(teaching, "seen", note)
    made = teaching.teacher(Setup(tmp_path))
    for view in range(2):
        whole, rows = shown[view], [7, 2, 10]
        for epoch in (view, view + 2):  # views repeat
            views, features = batch_of(made, rows, epoch)
            assert torch.equal(views, whole[rows])
            wanted = (made.features[view, rows].float() - made.mean) / made.deviation
            assert torch.equal(features, wanted)
    assert not torch.equal(shown[0], shown[1])


def test_a_kept_teacher_teaches_where_weights_are_missing(tmp_path, monkeypatch):
    made = teaching.teacher(Setup(tmp_path))
    monkeypatch.setattr(teaching, "load_vgg16", None)
    monkeypatch.setattr(teaching, "kept_baselines", None)
    again = teaching.teacher(Setup(tmp_path))
    assert (again.about, again.classifier) == (made.about, made.classifier)
    assert torch.equal(again.features, made.features)
    assert made.about["weights"] is None  # random ones have no SHA-256
    with pytest.raises(TypeError, match="NoneType"):  # another seed has another teacher
        teaching.teacher(Setup(tmp_path, seed=6))


def taught_network():
    torch.manual_seed(0)
    return Normalized(small_efficientnet(num_classes=3))


def fit(folder, made, recipe=RECIPE):
    stopped, described = load_stopped(folder), {"network": "tiny", "teacher": made.about}
    save = Saver(Run(taught_network(), recipe, CPU, teacher=made), folder, described)
    return loop.fit(save, train_set(), train_set(), stopped)


def test_a_taught_run_goes_on_to_the_same_weights(tmp_path):
    made = teaching.teacher(Setup(tmp_path))
    grows = replace(RECIPE, stages=3, first_size_px=8, first_strength=0)
    with tiny.stopped_after_an_epoch():
        fit(tmp_path / "stopped", made, grows)
    histories = [fit(tmp_path / name, made, grows) for name in ("stopped", "whole")]
    best = [tiny.state(tmp_path / name, "best.pt")["network"] for name in ("stopped", "whole")]
    tiny.assert_same(*best)
    assert set(best[0]) == set(taught_network().state_dict())  # without the layer that guesses
    assert histories[0][-1]["train_loss"] == histories[1][-1]["train_loss"]


def test_the_loss_is_the_labels_and_the_features_errors(tmp_path):
    made = teaching.teacher(Setup(tmp_path))
    plain = replace(RECIPE, augmentation=replace(VARIED, cutmix_prob=0), label_smoothing=0)
    run = Run(taught_network(), plain, CPU, teacher=made)
    torch.nn.init.normal_(run.trained.guess.weight)
    run.trained.eval()
    indexes = torch.tensor([1, 4, 6])
    images, targets = loop.process_batch(run, train_set(), indexes)
    logits, loss = loop._loss(run.forward, images, targets, 3, run)
    guessed = run.trained(images)[1]
    wanted = torch.nn.functional.cross_entropy(logits, train_set().labels[indexes])
    wanted += 8 * torch.nn.functional.mse_loss(guessed, batch_of(made, [1, 4, 6])[1])
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(logits, run.network(images))


def test_two_processes_share_the_views_and_features_of_one(tmp_path, place):
    made = teaching.teacher(Setup(tmp_path))

    def batch():
        run = Run(taught_network(), RECIPE, CPU, teacher=made)
        return loop.process_batch(run, train_set(), torch.arange(11))

    images, targets = batch()
    assert targets.shape == (11, 3 + len(made.mean))
    assert ((targets[:, :3] > 0).sum(dim=1) == 2).any()  # some are mixed
    for rank in range(2):
        place(rank, 2)
        share = batch()
        assert torch.equal(share[0], images[rank::2])
        assert torch.equal(share[1], targets[rank::2])
