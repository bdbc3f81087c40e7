import numpy as np
import pytest
import torch

from common.data.images import to_tensor
from common.errors import UserError
from common.networks import calibration
from common.networks.losses import compare
from common.networks.vgg import VGG16Features
from common.networks.weights import random_vgg16
from tests.conftest import picture


def image(seed: int) -> torch.Tensor:
    return to_tensor(picture(seed))


@pytest.fixture(scope="module")
def network():
    return VGG16Features(random_vgg16(seed=0, want_lpips=False), ["relu2_2", "relu3_1"])


def calibrated_photos(network, width_px=48):
    """Losses under noise of three photos of 48x40 px that calibrate one another."""
    photos = {f"photo{seed}": picture(seed) for seed in range(3)}

    def make_copies(photo):
        original = to_tensor(photos[photo])[..., :width_px]
        noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
        return {"unused": original, "original": original, "noisy": (original + noise).clamp(0, 1)}

    sizes = dict.fromkeys(photos, (width_px, 40))
    chosen = {photo: [name for name in photos if name != photo] for photo in photos}
    references = calibration.References(photos, sizes, chosen, are_photos=True)
    pairs = {"noise": ("original", "noisy")}
    return calibration.calibrated_losses(network, sizes, pairs, make_copies, references)


def test_calibrated_loss_of_unrelated_pairs_averages_1(network):
    images = {i: image(i) for i in range(4)}
    raw = compare(network, images, {i: (0, i) for i in (1, 2, 3)})
    calibrated = calibration.calibrate(raw, list(raw.values()))
    for loss in raw[1]:
        mean = np.mean([calibrated[i][loss][1] for i in raw])
        assert mean == pytest.approx(1)
        assert [calibrated[i][loss][0] for i in raw] == [raw[i][loss] for i in raw]


def test_a_yardstick_of_zero_is_refused():
    with pytest.raises(UserError, match="l1 is 0 between unrelated pictures"):
        calibration.calibrate({"pair": {"l1": 1.0}}, [{"l1": 0.0}])


@pytest.mark.parametrize("width_px", [48, 47])
def test_measuring_together_or_one_by_one_is_the_same(network, monkeypatch, width_px):
    together = calibrated_photos(network, width_px)
    monkeypatch.setattr(calibration, "LOCK_STEP_PIXELS", 1)
    assert calibrated_photos(network, width_px) == together


def test_photos_of_one_size_that_calibrate_one_another_pass_once(network):
    passes = []
    hook = network.segments[0].register_forward_hook(lambda *_: passes.append(1))
    calibrated_photos(network)
    hook.remove()
    assert len(passes) == 3 * 2


def test_a_reference_is_scaled_where_its_size_differs():
    pictures, sizes = {"a": picture(0), "b": picture(1)}, {"a": (47, 40), "b": (48, 40)}
    chosen = {"photo": ["a", "b"]}
    references = calibration.References(pictures, sizes, chosen, are_photos=False)
    assert torch.equal(references.picture("a", (47, 40)), image(0)[..., :47])
    assert torch.equal(references.picture("b", (48, 40)), image(1))
    assert references.picture("b", (47, 40)).shape == (3, 40, 47)
    assert references.used({"photo": (47, 40)}) == {
        "references": ["a", "b"],
        "references_resized": {"b": "48x40"},
    }


def test_summary_of_photos(network):
    calibrated = calibrated_photos(network)
    row = calibration.summarise(calibrated, "noise")["relu2_2"]
    values = [losses["noise"]["relu2_2"][1] for losses in calibrated.values()]
    assert row["relative"] == pytest.approx(np.mean(values))
    assert min(values) <= row["low"] <= row["relative"] <= row["high"] <= max(values)
