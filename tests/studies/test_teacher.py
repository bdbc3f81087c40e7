"""Teacher and student see the same places, a file keeps maps, and a stopped run goes on."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from common.data import streams
from common.data.augment import Augmentation, Draws, mix_maps, random_crops
from common.data.packed import Packed
from common.data.sets import DrawnSet
from common.networks.normalized import seeded
from common.networks.vgg import VGG16Features
from common.networks.weights import random_vgg16
from common.studies import teacher as teaching
from common.studies.baselines import scaled
from common.training import loop
from common.training.recipe import Recipe
from common.training.run import Run, Saver, load_stopped
from tests.faults.tiny import small_efficientnet
from tests.training import test_loop as tiny

CPU = torch.device("cpu")
VARIED = Augmentation(crop_area_min=0.3, jitter=0.2, cutmix_prob=0.5)
RECIPE = Recipe(3, 4, 16, 0.01, warmup_epochs=1, ema_decay=0.5, augmentation=VARIED)


@pytest.fixture(autouse=True)
def with_weights(monkeypatch):
    monkeypatch.setattr(teaching, "load_vgg16", lambda *_, **__: random_vgg16(0, False))


def train_set(side=20):
    pixels = np.random.default_rng(0).integers(0, 256, (11, side, side, 3), dtype=np.uint8)
    return Packed(pixels, torch.arange(11) % 3, np.arange(11), DrawnSet("train", 11, 3, seed=0))


class Setup:  # the fields that a teacher needs
    def __init__(self, folder, image_size=16):
        self.args = SimpleNamespace(teacher="vgg16", image_size=image_size, cache=folder)
        self.packed, self.device = {"train": train_set(image_size + 4)}, CPU


def crop(left, top, right, bottom, mirrored=False):
    """A crop by its sides' places, from -1 to 1, as `affine_grid` takes it."""
    width, height = (right - left) / 2, (bottom - top) / 2
    row = [-width if mirrored else width, 0, (left + right) / 2]
    return torch.tensor([[row, [0, height, (top + bottom) / 2]]])


def test_a_crops_features_are_the_means_of_the_maps_pixels_in_it():
    maps = torch.rand(1, 3, 12, 12)
    (whole,) = teaching.cell_means(maps, crop(-1, -1, 1, 1), [4])
    torch.testing.assert_close(whole, torch.nn.functional.avg_pool2d(maps, 3))
    right_half, _ = teaching.cell_means(maps, crop(0, -1, 1, 1, mirrored=True), [2, 1])
    wanted = torch.nn.functional.avg_pool2d(maps[..., 6:], (6, 3)).flip(3)
    torch.testing.assert_close(right_half, wanted)
    # Borders within pixels: half of the first row and column, all of the second.
    _, inner = teaching.cell_means(maps, crop(-11 / 12, -11 / 12, -8 / 12, -8 / 12), [2, 1])
    shares = torch.tensor([0.5, 1]) / 1.5
    wanted = torch.einsum("cyx,y,x->c", maps[0, :, :2, :2], shares, shares)
    torch.testing.assert_close(inner.flatten(), wanted)


def test_the_maps_are_vggs_of_the_scaled_images(tmp_path):
    made = teaching.teacher(Setup(tmp_path))
    images = train_set().batch(torch.tensor([7, 2]), CPU)[0] / 255
    network = VGG16Features(random_vgg16(0, False), teaching.LAYERS)
    with torch.inference_mode():
        seen = network(scaled(images, 96))
    wanted = torch.cat([one.mean((2, 3)) for one in seen.values()], dim=1)
    torch.testing.assert_close(made.maps[[7, 2]].float().mean((2, 3)), wanted, atol=1e-3, rtol=1e-2)


def test_a_kept_teacher_teaches_where_weights_are_missing(tmp_path, monkeypatch):
    made = teaching.teacher(Setup(tmp_path))
    monkeypatch.setattr(teaching, "load_vgg16", None)
    again = teaching.teacher(Setup(tmp_path))
    assert (again.about, again.seconds) == (made.about, made.seconds)
    assert torch.equal(again.maps, made.maps)
    assert made.about["weights"] is None  # random ones have no SHA-256
    with pytest.raises(TypeError, match="NoneType"):  # images of another size have another teacher
        teaching.teacher(Setup(tmp_path, image_size=18))


def taught_network():
    return seeded(lambda: small_efficientnet(num_classes=3), 0)


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


def test_the_loss_is_the_labels_and_the_features_errors_in_mixed_images(tmp_path):
    made = teaching.teacher(Setup(tmp_path))
    run = Run(taught_network(), replace(RECIPE, label_smoothing=0), CPU, teacher=made)
    for guess in run.trained.guesses:
        torch.nn.init.normal_(guess.weight)
    run.trained.eval()
    indexes, draws = torch.arange(11), Draws(0, streams.AUGMENT, 0, 0, 11, CPU)
    batch = loop.process_batch(run, train_set(), indexes)
    logits, cross_entropy, loss = loop._loss(run, run.forward, batch, 11)
    crops = random_crops(VARIED.crop_area_min, draws)
    varied = VARIED.vary(train_set().batch(indexes, CPU)[0], crops, 16, draws)
    _, targets, pasted = VARIED.mix(varied, torch.eye(3)[indexes % 3], draws)
    assert ((targets > 0).sum(dim=1) == 2).any()  # some are mixed
    wanted = torch.nn.functional.cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy, wanted)
    for side, guessed in zip((8, 4, 2), run.trained(batch.images)[1], strict=True):  # of 16 px
        features = mix_maps(*made.features(indexes, crops, [side]), pasted)
        wanted += 8 * torch.nn.functional.mse_loss(guessed, features)
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(logits, run.network(batch.images))
