import contextlib
import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.data import streams
from common.data.augment import Augmentation
from common.data.packed import Packed
from common.errors import UserError
from common.training import loop
from common.training.evaluation import evaluate, per_class
from common.training.recipe import Recipe
from common.training.run import Run, Saver, load_checkpoint, load_stopped

CPU = torch.device("cpu")
PLAIN = Augmentation(crop_area_min=1, jitter=0, cutmix_prob=0)


class Source:
    name = "tiny set"
    class_names = ("dark", "bright", "red")

    def fingerprint(self):
        return "tiny"


def packed(images=11, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(images) % 3
    pixels = rng.integers(0, 90, (images, 9, 9, 3))
    pixels[labels == 1] += 120
    pixels[labels == 2, ..., 0] += 160
    return Packed(pixels.astype(np.uint8), torch.from_numpy(labels), np.arange(images), Source())


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


RECIPE = Recipe(
    epochs=3, batch_size=4, image_size_px=8, learning_rate=0.02, warmup_epochs=1, ema_decay=0.5
)


def fit(net, folder, recipe=RECIPE, fresh=False, every_seconds=300):
    """Train a network on the tiny set, or go on where its run stopped; returns its history."""
    stopped = None if fresh else load_stopped(folder)
    save = Saver(Run(net, recipe, CPU), folder, {"network": "tiny"}, every_seconds)
    return loop.fit(save, packed(), packed(7, 1), stopped)


def train(folder, recipe=RECIPE, **options):
    net = network()
    return net, fit(net, folder, recipe, **options)


@contextlib.contextmanager
def stopped_after_an_epoch():
    """Stop any training in the block after its first epoch."""
    whole_epoch = loop.train_one_epoch

    def one_epoch(run, *args):
        if run.epoch == 1:
            raise KeyboardInterrupt
        whole_epoch(run, *args)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loop, "train_one_epoch", one_epoch)
        with pytest.raises(KeyboardInterrupt):
            yield


def train_an_epoch(folder, recipe=RECIPE, **options):
    """Train until a stop after the first epoch; returns the path of last.pt."""
    with stopped_after_an_epoch():
        train(folder, recipe, **options)
    return folder / "last.pt"


def state(folder, name="last.pt"):
    return load_checkpoint(folder / name)


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, one in a.items():
        assert torch.equal(one, b[name]), name


# ------------------------------------------------------------------------------------- the recipe


def test_learning_rate_warms_up_and_falls_as_a_cosine():
    recipe = replace(RECIPE, epochs=10, warmup_epochs=2, learning_rate=1.0)
    rates = [recipe.learning_rate_at(epoch) for epoch in (0, 1, 2, 6, 10)]
    assert rates == pytest.approx([0, 0.5, 1, 0.5, 0])
    held = replace(recipe, schedule="constant")
    assert [held.learning_rate_at(epoch) for epoch in (1, 2, 6, 10)] == [0.5, 1, 1, 1]


def test_each_step_has_the_rate_of_its_middle_so_that_the_first_is_not_0(tmp_path, monkeypatch):
    rates, step = [], loop.train_step
    recipe = replace(RECIPE, epochs=2, batch_size=6, warmup_epochs=1, learning_rate=1e-3)

    def noted(run, *args):
        loss = step(run, *args)
        rates.append(run.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(loop, "train_step", noted)
    fit(network(), tmp_path, recipe)
    wanted = [0.25, 0.75, (1 + math.cos(math.pi / 4)) / 2, (1 + math.cos(3 * math.pi / 4)) / 2]
    assert rates == pytest.approx([1e-3 * share for share in wanted])


def dead_net():
    """A network whose batch norm gets values with squares that are infinite in fp32."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
    nn.init.normal_(net[0].weight, std=1e22)
    net.extend([nn.Flatten(), nn.Linear(4, 3)])
    nn.init.zeros_(net[-1].bias)
    return net


def test_a_first_loss_of_equal_logits_through_a_dead_layer_is_warned_of(tmp_path, capsys):
    fit(dead_net(), tmp_path, replace(RECIPE, ema_decay=0))
    (warning,) = capsys.readouterr().err.splitlines()
    told = "1 is a dead layer: infinite variance, constant output in 4 of 4 channels"
    equal = f"the first loss, {math.log(3):.4f}, is that of equal logits over 3 classes"
    assert (
        warning == f"warning: {equal}; {told}; its input must be smaller: a smaller --lr can't help"
    )


def test_a_first_loss_of_equal_logits_alone_is_not(tmp_path, capsys):
    net = network()
    nn.init.zeros_(net[6].weight)
    nn.init.zeros_(net[6].bias)
    fit(net, tmp_path, replace(RECIPE, epochs=1))
    assert capsys.readouterr().err == ""


def test_a_dead_layer_is_named_where_gradients_are_not_finite(tmp_path):
    net = dead_net()
    nn.init.normal_(net[-1].weight, std=1e22)
    with pytest.raises(UserError, match=r"; 1 is a dead layer: infinite variance, constant output"):
        fit(net, tmp_path)


# ------------------------------------------------------------------------------------- evaluation


def test_evaluation_counts_every_image_once():
    net, split = network().eval(), packed(11)
    with torch.no_grad():
        logits = net(split.batch(torch.arange(11), CPU)[0][..., :8, :8].float() / 255)
    found = evaluate(net, split, RECIPE, CPU)
    wanted = nn.functional.cross_entropy(logits, split.labels).item()
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    assert found["correct"] == int((logits.argmax(1) == split.labels).sum())
    assert found["top1"] == pytest.approx(100 * found["correct"] / 11)
    assert found["top5"] == 100
    for batch_size in (1, 3, 100):
        other = evaluate(net, split, replace(RECIPE, batch_size=batch_size), CPU)
        assert other["correct"] == found["correct"]


def test_an_image_whose_logits_are_not_finite_counts_as_wrong(capsys):
    def spoil_white(_module, inputs, logits):
        white = (inputs[0] == 1).flatten(1).all(1, keepdim=True)
        return torch.where(white, torch.inf, logits)

    split, brittle = packed(11), network()
    brittle.register_forward_hook(spoil_white)
    usual = evaluate(brittle, split, RECIPE, CPU)
    first = usual["hits"].index("1")  # an image that is right
    split.images[first] = 255
    found = evaluate(brittle, split, RECIPE, CPU)
    assert (found["not_finite"], found["loss"]) == (1, None)
    assert brittle.training
    assert (usual["not_finite"], usual["correct"]) == (0, found["correct"] + 1)
    assert found["hits"] == usual["hits"][:first] + "0" + usual["hits"][first + 1 :]
    told = "tiny set: the logits of 1 of 11 images are not finite and count as wrong"
    assert told in capsys.readouterr().err


# --------------------------------------------------------------------------------------- training


def test_one_step_equals_plain_pytorch():
    recipe = replace(
        RECIPE, epochs=1, batch_size=11, warmup_epochs=0, ema_decay=0, label_smoothing=0.2,
        optimizer="sgd", weight_decay=0, augmentation=PLAIN, image_size_px=9,
    )  # fmt: skip
    net = network()
    net[3].p = 0.0
    other, split = network(), packed()
    other[3].p = 0.0
    run = Run(net, recipe, CPU)
    # A 1x1 convolution would see only the mean colour, which mirroring does not change, and a whole
    # batch's order does not matter. So compare on the images that the step really gets.
    seen = []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    order = torch.arange(11)
    loop.train_step(run, split, order, epoch=0)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    loss = nn.functional.cross_entropy(other(seen[0]), split.labels, label_smoothing=0.2)
    loss.backward()
    optimizer.step()
    for name, wanted in other.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], wanted, rtol=1e-4, atol=1e-6)
    assert run.sums["loss"] == pytest.approx(11 * loss.item(), rel=1e-5)


def test_an_epoch_sees_every_image_once(monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "train_step", lambda *args: seen.append(args[2]))
    for images, batch_size in ((11, 4), (9, 4), (3, 8)):
        seen.clear()
        run = Run(network(), replace(RECIPE, batch_size=batch_size), CPU)
        train_set = packed(images)
        loop.train_one_epoch(run, train_set, save=type("S", (), {"if_due": lambda _: None})())
        assert torch.cat(seen).sort().values.tolist() == list(range(images))
        assert min(map(len, seen)) > 1  # batch norm can't train on one image


def test_it_learns_and_leaves_the_best_weights(tmp_path):
    net, history = train(tmp_path, replace(RECIPE, epochs=12))
    assert [row["epoch"] for row in history] == list(range(1, 13))
    best = max(history, key=lambda row: row["val_top1"])
    assert best["val_top1"] == 100
    saved = state(tmp_path, "best.pt")
    assert saved["epoch"] == best["epoch"]
    assert_same(net.state_dict(), saved["network"])
    assert evaluate(net, packed(7, 1), RECIPE, CPU)["top1"] == best["val_top1"]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history


def test_the_average_is_exponential_with_a_decay_that_warms_up():
    run = Run(network(), replace(RECIPE, ema_decay=0.2), CPU)
    wanted = None
    for step, decay in enumerate((0, 2 / 11, 0.2)):
        loop.train_step(run, packed(), torch.arange(4) + step, epoch=1)
        now = {name: one.clone().double() for name, one in run.network.state_dict().items()}
        wanted = now if wanted is None else {
            name: decay * wanted[name] + (1 - decay) * one for name, one in now.items()
        }  # fmt: skip
    found = run.evaluated.state_dict()["6.weight"].double()
    torch.testing.assert_close(found, wanted["6.weight"], rtol=1e-5, atol=1e-7)


def test_batch_norms_of_the_average_are_those_of_a_full_pass_of_its_weights():
    run, train_set = Run(network(), replace(RECIPE, ema_decay=0.9), CPU), packed()
    for step in range(3):
        loop.train_step(run, train_set, torch.arange(4) + step, epoch=1)
    trained = copy.deepcopy(run.network.state_dict())
    loop.recompute_batch_norms(run, train_set)
    order = torch.randperm(11, generator=streams.generator(0, streams.ORDER, 0))
    maps = []
    for step, indexes in enumerate(order.tensor_split(3)):
        run.step = step
        images = loop.process_batch(run, train_set, indexes).images
        maps.append(run.evaluated[0](images).detach())
    mean = torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(0)
    variance = torch.stack([one.var((0, 2, 3)) for one in maps]).mean(0)
    norm = run.evaluated[1]
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var, variance, rtol=1e-5, atol=1e-6)
    assert_same(run.network.state_dict(), trained)


def test_the_norm_of_large_gradients_does_not_overflow():
    gradients = [torch.full((2,), 3e20), torch.full((2,), -4e20)]
    assert not torch.nn.utils.get_total_norm(gradients).isfinite()
    assert loop.gradient_norm(gradients).item() == pytest.approx(5e20 * 2**0.5, rel=1e-6)
    assert loop.gradient_norm([torch.tensor([math.inf]), *gradients]).isinf()
    small = [torch.tensor([3.0]), torch.tensor([4.0])]
    assert torch.equal(loop.gradient_norm(small), torch.nn.utils.get_total_norm(small))


def test_a_step_of_one_image_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--batch-size 2: 11 training images make a step of 1,"):
        train(tmp_path, replace(RECIPE, batch_size=2))


# ------------------------------------------------------------------------------- non-finite values


class Spoil(nn.Module):
    """Return NaN if `direction` is "output"; else pass x on, with a gradient that is not finite."""

    def __init__(self, direction):
        super().__init__()
        self.direction = direction

    def forward(self, x):
        if self.direction == "output":
            return x * float("nan")
        x.register_hook(lambda gradient: gradient * float("inf"))
        return x


@pytest.mark.parametrize("direction", ["output", "gradient"])
def test_a_non_finite_value_stops_the_run_and_names_where_it_begins(tmp_path, direction):
    net = network()
    net.insert(2, Spoil(direction))
    before = {name: one.clone() for name, one in net.named_parameters()}
    place = rf"at epoch 1, step 1, .*: the first non-finite {direction} is that of 2;"
    with pytest.raises(UserError, match=place):
        fit(net, tmp_path)
    assert_same(dict(net.named_parameters()), before)
    assert not (tmp_path / "last.pt").exists()


def test_each_class_counts_the_same_however_many_images_it_has():
    labels, right = torch.tensor([0, 0, 0, 0, 2]), torch.tensor([1, 1, 0, 0, 1])
    assert per_class(labels, right) == pytest.approx((50 + 100) / 2)


def test_flip_averaging_takes_the_mean_logits_of_an_image_and_its_mirror_image():
    class Sides(nn.Module):
        def forward(self, images):
            left, right = images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))
            return torch.stack([left, torch.full_like(left, 0.3), right], dim=1)

    split = packed()
    split.images[:, :, :4] = 100  # the left is dark, the right is bright
    split.images[:, :, 4:] = 250
    alone = evaluate(Sides(), split, RECIPE, CPU)
    both = evaluate(Sides(), split, RECIPE, CPU, flip=True)
    mean = torch.tensor([[350 / 510, 0.3, 350 / 510]]).expand(11, 3)
    wanted = nn.functional.cross_entropy(mean, split.labels).item()
    assert both["loss"] == pytest.approx(wanted, rel=1e-5)
    assert alone["loss"] != pytest.approx(wanted, rel=1e-3)
