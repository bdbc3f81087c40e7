import json
import math
import os
from dataclasses import replace

import lpips
import numpy as np
import pytest
import torch
from conftest import picture
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchvision.models.vgg import cfgs, make_layers

import problem1_perceptual as p1
from common import data
from common.cli import UserError
from common.statistics import bootstrap_interval
from common.vgg import LAYERS, VGG16Features, layer_name, lock_step
from common.weights import random_vgg16

TINY = ("--layers", "relu1_2", "--no-lpips", "--weights", "random", "--summary-size", "32")


def image(seed: int, width: int = 48, height: int = 40) -> torch.Tensor:
    return data.to_tensor(picture(seed, width, height))


@pytest.fixture(scope="module")
def random_weights():
    return random_vgg16(seed=0)


# ------------------------------------------------------------------ pixel losses, shift and noise


@pytest.mark.parametrize("shift", [1, 3, 47])
def test_whole_shift_equals_numpy_slicing_bit_for_bit(shift):
    a = image(0)
    array = a.numpy()
    original, cropped = p1.translate(a, shift, "crop")
    np.testing.assert_array_equal(original.numpy(), array[..., :-shift])
    np.testing.assert_array_equal(cropped.numpy(), array[..., shift:])
    original, wrapped = p1.translate(a, shift, "wrap")
    np.testing.assert_array_equal(original.numpy(), array)
    np.testing.assert_array_equal(wrapped.numpy(), np.roll(array, -shift, axis=-1))
    _, replicated = p1.translate(a, shift, "replicate")
    padded = np.pad(array, ((0, 0), (0, 0), (0, shift)), mode="edge")
    np.testing.assert_array_equal(replicated.numpy(), padded[..., shift:])


def test_no_shift_is_the_image_itself():
    for edge in ("crop", "replicate", "wrap"):
        original, moved = p1.translate(image(0), 0, edge)
        assert torch.equal(original, image(0))
        assert torch.equal(moved, image(0))


def test_fractional_shift_moves_a_wave_exactly():
    columns = torch.arange(48, dtype=torch.float64)

    def wave(at):
        return (0.5 + 0.4 * torch.cos(2 * math.pi * 3 * at / 48)).expand(3, 8, 48)

    _, moved = p1.translate(wave(columns), 1.25, "wrap")
    torch.testing.assert_close(moved, wave(columns + 1.25))


def test_fractional_shift_on_a_photo_stays_near_its_neighbours():
    photo = data.to_tensor(data.embedded_photos()["chelsea"])
    original, moved = p1.translate(photo, 2.5, "crop")
    assert original.shape == moved.shape == (3, 300, 451 - 3)
    between = (photo[..., 2:-1] + photo[..., 3:])[..., : moved.shape[-1]] / 2
    assert (moved - between).abs().mean() < 0.25 * (photo[..., 1:] - photo[..., :-1]).abs().mean()


def test_shift_as_wide_as_the_image_is_refused():
    with pytest.raises(UserError, match="only 48 px wide"):
        p1.translate(image(0), 48, "crop")


def test_pixel_losses_by_hand():
    a = torch.zeros(3, 2, 2)
    b = torch.zeros(3, 2, 2)
    b[0, 0, 0] = 12 / 255
    losses = p1.pixel_losses(a, b)
    assert losses["l1"] == pytest.approx(1.0)
    assert losses["l2"] == pytest.approx(12.0)


def test_psnr_and_ssim_equal_scikit_image():
    a, b = image(0), image(1)
    arrays = [one.permute(1, 2, 0).numpy() for one in (a, b)]
    l2 = p1.pixel_losses(a, b)["l2"]
    assert p1.psnr(l2) == pytest.approx(peak_signal_noise_ratio(*arrays, data_range=1), rel=1e-6)
    expected = structural_similarity(
        *arrays,
        channel_axis=-1,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert p1.ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_wrapped_losses_break_the_inequality_that_all_numbers_keep():
    for photo in data.embedded_photos().values():
        original, moved = p1.translate(data.to_tensor(photo), 1, "crop")
        l1_uint8, l2_uint8 = p1.wrapped_uint8_losses(photo[:, :-1], photo[:, 1:])
        losses = p1.pixel_losses(original, moved)
        assert losses["l2"] >= losses["l1"] ** 2
        assert l2_uint8 < l1_uint8**2
        steps = photo[:, :-1].astype(int) - photo[:, 1:]
        assert l1_uint8 == pytest.approx((steps % 256).mean())
        assert l2_uint8 == pytest.approx((steps**2 % 256).mean())
        assert losses["l1"] == pytest.approx(np.abs(steps).mean(), rel=1e-5)
        assert losses["l2"] == pytest.approx((steps**2).mean(), rel=1e-5)


def test_noise_depends_on_its_key_alone_and_is_clipped():
    shape = torch.Size([3, 64, 64])
    noise = p1.unit_noise(shape, 0, 1, 2)
    assert torch.equal(noise, p1.unit_noise(shape, 0, 1, 2))
    assert not torch.equal(noise, p1.unit_noise(shape, 0, 1, 3))
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    grey, share = p1.add_noise(torch.full(shape, 0.5), 25, noise)
    assert share == 0
    assert ((grey - 0.5) * 255).std().item() == pytest.approx(25, rel=0.02)
    black, share = p1.add_noise(torch.zeros(shape), 25, noise)
    assert share == pytest.approx(0.5, abs=0.02)
    assert black.min() == 0


# --------------------------------------------------------------------------------- feature losses


def plain_maps(weights, one):
    """All maps of a hook-free torchvision VGG-16, none of its layers in place."""
    layers = make_layers(cfgs["D"])
    layers.load_state_dict(weights.features)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    state, maps = ((one - mean) / std)[None], []
    for layer in layers:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False
        maps.append(state := layer(state))
    return {name: maps[place.number - 1] for name, place in LAYERS.items()}


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@torch.inference_mode()
def test_maps_of_all_26_layers_equal_plain_vgg16(random_weights):
    expected = plain_maps(random_weights, image(0))
    found = VGG16Features(random_weights, list(LAYERS))(image(0))
    assert list(found) == list(LAYERS)
    assert len(found) == 26
    for name, map_ in found.items():
        assert relative_error(map_, expected[name]) < 1e-5, name
    assert found["conv5_3"].min() < 0  # the value before the ReLU
    assert found["relu5_3"].min() == 0


@torch.inference_mode()
@pytest.mark.parametrize("which", ["random_weights", "real_weights"])
def test_losses_of_all_26_layers_equal_plain_vgg16(which, request):
    weights = request.getfixturevalue(which)
    a, b = image(0), image(1)
    network = VGG16Features(weights, list(LAYERS))
    losses = p1.compare(network, {"a": a, "b": b}, {"pair": ("a", "b")})["pair"]
    maps_a, maps_b = plain_maps(weights, a), plain_maps(weights, b)
    assert len(network.layers) == 26
    for name in network.layers:
        difference = (maps_a[name] - maps_b[name]).double()
        assert losses[name] == pytest.approx(difference.square().mean().item(), rel=1e-5)
        assert losses[f"mae_{name}"] == pytest.approx(difference.abs().mean().item(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight:UserWarning")  # lpips calls torchvision the old way
@torch.inference_mode()
def test_lpips_equals_the_lpips_package(real_weights):
    package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = dict(zip(package.net.state_dict(), real_weights.features.values(), strict=True))
    package.net.load_state_dict(state)
    photos = [data.to_tensor(one)[:, :96, :112] for one in data.embedded_photos().values()]
    images = dict(enumerate([photos[0], p1.translate(photos[0], 1, "wrap")[1], *photos[1:4]]))
    pairs = {(0, i): (0, i) for i in range(1, len(images))}
    network = VGG16Features(real_weights, ["relu1_2"])
    for (a, b), losses in p1.compare(network, images, pairs).items():
        expected = package(images[a][None], images[b][None], normalize=True).item()
        assert losses["lpips"] == pytest.approx(expected, rel=1e-4)


def test_lpips_of_features_of_zero_length_is_a_number():
    nothing, something = torch.zeros(1, 8, 2, 2), torch.ones(1, 8, 2, 2)
    assert p1.lpips_layer(nothing, nothing, torch.ones(8)) == 0
    assert p1.lpips_layer(nothing, something, torch.ones(8)) == pytest.approx(1)


def test_identical_images_have_no_loss_and_losses_are_symmetric(random_weights):
    images = {"a": image(0), "twin": image(0), "b": image(1)}
    pairs = {"same": ("a", "twin"), "there": ("a", "b"), "back": ("b", "a")}
    network = VGG16Features(random_weights, ["relu1_2", "conv3_1", "relu5_3"])
    losses = p1.compare(network, images, pairs)
    assert set(losses["same"].values()) == {0.0}
    assert losses["there"] == losses["back"]
    assert min(losses["there"].values()) > 0
    assert p1.psnr(0.0) == math.inf
    assert p1.ssim(image(0), image(0)) == 1


def test_each_image_passes_once_and_no_deeper_than_asked(random_weights):
    without_lpips = replace(random_weights, lpips_heads=None)
    network = VGG16Features(without_lpips, ["relu1_2", "relu2_2"])
    calls = []
    for segment in network.segments:
        segment.register_forward_hook(lambda *_: calls.append(1))
    images = {name: image(seed) for seed, name in enumerate("abcd")}
    pairs = {(x, y): (x, y) for x in "abcd" for y in "abcd" if x < y}
    seen = [(key, tap) for key, tap, _, _ in lock_step(network, images, pairs)]
    assert len(calls) == 4 * 2
    assert sorted(seen) == sorted((pair, tap) for pair in pairs for tap in network.taps)
    convolutions = [one for one in network.modules() if isinstance(one, torch.nn.Conv2d)]
    assert len(convolutions) == 4


def test_maps_are_dropped_after_their_last_pair(random_weights):
    network = VGG16Features(replace(random_weights, lpips_heads=None), ["relu1_2"])
    images = {i: image(i) for i in range(6)}
    pairs = {i: (0, i) for i in range(1, 6)}
    alive = torch.multiprocessing.reductions.StorageWeakRef
    refs = []
    for _, _, a, b in lock_step(network, images, pairs):
        refs += [alive(one.untyped_storage()) for one in (a, b)]
        del a, b
        held = {ref.cdata for ref in refs if not ref.expired()}
        assert len(held) <= 2


def test_bf16_stays_within_2_percent_of_fp32(real_weights):
    photos = [data.to_tensor(one)[:, :196, :197] for one in data.embedded_photos().values()]
    original, translated = p1.translate(photos[0], 1, "crop")
    noise = p1.unit_noise(original.shape, 0)
    noisy = {f"sigma {sigma}": p1.add_noise(original, sigma, noise)[0] for sigma in (2, 5, 25)}
    images = {"o": original, "shift": translated, "unrelated": photos[1][..., :196], **noisy}
    pairs = {name: ("o", name) for name in images if name != "o"}

    def relative(dtype):
        network = VGG16Features(real_weights, ["relu1_2", "relu2_2", "relu3_1", "relu5_3"], dtype)
        raw = p1.compare(network, images, pairs)
        return p1.calibrate(raw, [raw["unrelated"]])

    exact, rounded = relative(torch.float32).relative, relative(torch.bfloat16).relative
    for pair, losses in exact.items():
        for loss, value in losses.items():
            assert rounded[pair][loss] == pytest.approx(value, rel=0.02), (pair, loss)


@pytest.mark.parametrize("text", ["31", "5", "0", "relu6_1", "conv3_4", "fc6"])
def test_unknown_layer(text):
    with pytest.raises(UserError, match="no such layer"):
        layer_name(text)


def test_the_reports_layers_and_their_receptive_fields():
    names = [layer_name(number) for number in p1.REPORT_LAYERS]
    assert names == ["relu1_2", "relu2_2", "relu3_1", "relu5_3"]
    assert [LAYERS[name].receptive_field_px for name in names] == [5, 14, 24, 196]
    assert layer_name("conv5_3") == layer_name("29")


@torch.inference_mode()
def test_receptive_field_by_changing_one_pixel(random_weights):
    a = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[:, 48, 48] += 0.5
    network = VGG16Features(random_weights, ["relu1_2", "conv2_2"])
    for name, x, y in zip(network.layers, network(a).values(), network(b).values(), strict=False):
        changed = (x != y)[0].any(0).any(0).sum().item()
        stride = 96 // x.shape[-1]
        assert changed == math.ceil(LAYERS[name].receptive_field_px / stride), name


# ------------------------------------------------------------- calibration, intervals, equivalents


def measure(network, seeds, **sizes):
    photos = {f"photo{seed}": image(seed) for seed in seeds}
    trials = {
        name: p1.Trial(
            {"original": one, "noisy": p1.add_noise(one, 20, p1.unit_noise(one.shape, 1))[0]},
            {"noise": ("original", "noisy")},
        )
        for name, one in photos.items()
    }
    others = {name: [other for other in photos if other != name] for name in photos}
    return p1.measure(
        network,
        {name: sizes.get(name, (48, 40)) for name in photos},
        trials.__getitem__,
        others,
        lambda name, _: photos[name],
        "test",
        others_are_photos=True,
    )


def test_calibrated_loss_of_unrelated_pairs_averages_1(random_weights):
    network = VGG16Features(random_weights, ["relu2_2", "relu5_3"])
    images = {i: image(i) for i in range(4)}
    raw = p1.compare(network, images, {i: (0, i) for i in (1, 2, 3)})
    measured = p1.calibrate(raw, list(raw.values()))
    for loss in raw[1]:
        mean = np.mean([measured.relative[i][loss] for i in raw])
        assert mean == pytest.approx(1)


def test_measuring_together_or_one_by_one_is_the_same(random_weights, monkeypatch):
    network = VGG16Features(random_weights, ["relu2_2"])
    together = measure(network, range(3))
    monkeypatch.setattr(p1, "LOCK_STEP_PIXELS", 1)
    assert measure(network, range(3)) == together


def test_summary_of_photos(random_weights):
    measured = measure(VGG16Features(random_weights, ["relu2_2"]), range(3))
    row = p1.summarise(measured, "noise")["relu2_2"]
    values = [one.relative["noise"]["relu2_2"] for one in measured.values()]
    assert row["relative"] == pytest.approx(np.mean(values))
    assert min(values) <= row["low"] <= row["relative"] <= row["high"] <= max(values)


def test_bootstrap_interval_of_many_values_is_the_normal_one():
    values = np.random.default_rng(1).normal(3, 2, (400, 1))
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.05)
    assert high == pytest.approx(values.mean() + half, abs=0.05)


def test_bootstrap_interval_shapes_and_single_values():
    low, high = bootstrap_interval(np.full((3, 2, 5), 0.7))
    np.testing.assert_allclose(low, np.full(5, 0.7))
    np.testing.assert_allclose(high, np.full(5, 0.7))
    assert np.isnan(bootstrap_interval(np.ones((1, 1)))).all()
    spread = np.array([[[0.0], [1.0]]])  # one photo, two draws: the draws are resampled
    low, high = bootstrap_interval(spread)
    assert low[0] == 0
    assert high[0] == 1


def test_equivalent_sigma_of_a_power_law():
    noise = 1e-4 * np.array(p1.SIGMAS, float) ** 2
    for sigma in (1.5, 7.3, 25, 88):
        assert p1.equivalent_sigma(noise, 1e-4 * sigma**2) == pytest.approx(sigma)
    assert p1.equivalent_sigma(noise, 0.5e-4) == pytest.approx(0.5)
    assert p1.equivalent_sigma(noise, 2) == math.inf
    assert p1.equivalent_sigma(noise, 0) == 0


def test_shift_equivalent_sigma_with_interval():
    noise = 1e-4 * np.array(p1.SIGMAS, float) ** 2
    shift = np.zeros((2, 1, len(p1.SHIFTS_PX)))
    shift[:, 0, p1.SHIFTS_PX.index(1)] = [1e-4 * 10**2, 1e-4 * 20**2]
    found = p1.shift_equivalent_sigma(p1.Response(shift, np.tile(noise, (2, 3, 1))))
    assert found["low"] == pytest.approx(10)
    assert found["high"] == pytest.approx(20)
    assert found["sigma"] == pytest.approx(math.sqrt((10**2 + 20**2) / 2))


def test_dose_trial_moves_real_pixels_in():
    region = image(0, width=32 + 16, height=32)
    trial = p1.dose_trial(region, [p1.unit_noise(torch.Size([3, 32, 32]), 0)])
    assert torch.equal(trial.images["original"], region[..., :32])
    assert torch.equal(trial.images["shift 16"], region[..., 16:])
    assert len(trial.pairs) == len(p1.SHIFTS_PX) - 1 + len(p1.SIGMAS) - 1
    assert {one.shape for one in trial.images.values()} == {(3, 32, 32)}


# ---------------------------------------------------------------------------- the script as a whole


def results(out):
    return json.loads((out / "problem1" / "results.json").read_text())


def test_all_parts_on_a_folder(run, folder, tmp_path):
    code, out, err = run(p1, "--images", folder, "--out", tmp_path, "--noise-seeds", "2", *TINY)
    assert code == 0, err
    parts = results(tmp_path)["parts"]
    assert parts["1.1"]["images"]["a.png"].keys() == {
        *("size", "l1", "l2", "l1_uint8", "l2_uint8", "psnr", "ssim")
    }
    assert parts["1.1"]["images"]["a.png"]["size"] == [48, 40]
    assert parts["1.2"]["total_params"] == 138_357_544
    assert parts["1.2"]["losses"].keys() == {"l1", "l2", "relu1_2", "mae_relu1_2"}
    assert parts["1.2"]["weights"] == {"source": "random (seed 0)", "sha256": None}
    assert parts["1.3"]["losses"].keys() == {*parts["1.2"]["losses"], "psnr", "ssim"}
    assert parts["1.3"]["shift_equivalent_sigma"].keys() == parts["1.2"]["losses"].keys()
    assert parts["1.3"]["curves"]["sigma"] == list(p1.SIGMAS)
    for part in parts.values():
        for key in ("command", "seed", "device", "data", "weights_source", "seconds", "git_commit"):
            assert key in part
    names = {path.name for path in (tmp_path / "problem1").iterdir()}
    assert {"1.1_shift.png", "1.2_feature_losses.png", "1.3_noise.png"} <= names
    assert {"1.3_dose_response.png", "1.3_shift_equivalent_noise.txt"} <= names
    assert "1.3_dose_response_random.png" not in names  # the control of the control
    for table in ("1.2_feature_losses.txt", "1.3_noise.txt", "1.3_dose_response.txt"):
        assert "RANDOM WEIGHTS" in (tmp_path / "problem1" / table).read_text()
    assert "RANDOM WEIGHTS" in out


def test_the_same_command_gives_the_same_numbers(run, folder, tmp_path):
    found = []
    for name in ("one", "two"):
        out = tmp_path / name
        run(p1, "1.2", "1.3", "--no-curves", "--images", folder, "--out", out, *TINY)
        parts = results(out)["parts"]
        found.append([parts["1.2"]["losses"], parts["1.3"]["losses"]])
    assert found[0] == found[1]


def test_one_part_alone_measures_the_same_as_all_parts(run, folder, tmp_path):
    run(p1, "1.2", "1.3", "--no-curves", "--images", folder, "--out", tmp_path / "both", *TINY)
    run(p1, "1.3", "--no-curves", "--images", folder, "--out", tmp_path / "one", *TINY)
    both, one = (results(tmp_path / name)["parts"]["1.3"] for name in ("both", "one"))
    assert one["losses"] == both["losses"]
    assert one["losses_translated"] == both["losses_translated"]


def test_one_image_is_calibrated_with_the_embedded_photos_and_says_so(run, folder, tmp_path):
    path = folder / "a.png"
    code, out, err = run(p1, "1.2", "--image", path, "--out", tmp_path, *TINY)
    assert code == 0, err
    assert results(tmp_path)["parts"]["1.2"]["references"] == sorted(data.EMBEDDED_PHOTOS)
    assert "Another picture: astronaut (512x512), chelsea (451x300)" in out
    assert results(tmp_path)["parts"]["1.2"]["losses"]["l1"]["low"] is None


def test_references_of_another_size_are_scaled_and_named(run, folder, tmp_path):
    from PIL import Image

    Image.fromarray(picture(7, 100, 30)).save(tmp_path / "wide.png")
    Image.fromarray(picture(8, 30, 60)).save(tmp_path / "tall.png")
    flags = ("--reference", tmp_path / "wide.png", tmp_path / "tall.png")
    code, out, err = run(p1, "1.2", "--image", folder / "a.png", *flags, "--out", tmp_path, *TINY)
    assert code == 0, err
    assert "wide.png (100x30)" in out
    assert "tall.png (30x60)" in out
    assert len(results(tmp_path)["parts"]["1.2"]["references_resized"]) == 2


def test_a_bad_file_among_good_ones_is_named_counted_and_left_out(run, folder, tmp_path):
    (folder / "broken.jpg").write_text("no image")
    code, _, err = run(p1, "1.1", "--images", folder, "--out", tmp_path)
    assert code == 0
    assert "broken.jpg" in err
    assert "left out 1 of 4 images" in err
    assert len(results(tmp_path)["parts"]["1.1"]["images"]) == 3
    assert "broken.jpg" in results(tmp_path)["parts"]["1.1"]["left_out"][0]


def test_only_so_many_references_are_drawn_as_asked(folder, tmp_path):
    flags = ("--images", folder, "--max-references", "1", "--out", tmp_path)
    args = p1.make_parser().parse_args(list(map(str, ("1.2", *flags, *TINY))))
    others = p1.Experiment(args).others
    assert all(len(names) == 1 and names != [photo] for photo, names in others.items())
    assert len(others) == 3


def test_a_reference_with_a_photos_name_is_not_taken_for_the_photo(
    run, folder, tmp_path, monkeypatch
):
    def relative(reference):
        flags = ("--image", folder / "a.png", "--reference", reference, "--out", tmp_path)
        code, _, err = run(p1, "1.2", *flags, *TINY)
        assert code == 0, err
        return [row["relative"] for row in results(tmp_path)["parts"]["1.2"]["losses"].values()]

    other = tmp_path / "a.png"
    other.write_bytes((folder / "b.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    assert relative("a.png") == relative(other)
    assert min(relative("a.png")) > 0


def test_a_yardstick_of_zero_is_refused():
    with pytest.raises(UserError, match="l1 is 0 between unrelated pictures"):
        p1.calibrate({"pair": {"l1": 1.0}}, [{"l1": 0.0}])


def test_files_of_an_earlier_run_with_other_flags_do_not_stay(run, folder, tmp_path):
    stale = tmp_path / "problem1" / "1.1_old.png"
    other = tmp_path / "problem1" / "1.2_of_another_part.png"
    stale.parent.mkdir()
    for path in (stale, other):
        path.write_text("old")
        os.utime(path, (1, 1))
    assert run(p1, "1.1", "--images", folder, "--out", tmp_path)[0] == 0
    assert not stale.exists()
    assert other.exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--shift", "48"), "only 48 px wide"),
        (("--shift", "-1"), "'-1' is not a finite number of 0 or more"),
        (("--sigma", "-1"), "'-1' is not a finite number of 0 or more"),
        (("--sigma", "nan"), "not a finite number"),
        (("--layers", "31"), "no such layer"),
        (("--layers", "relu5_3", "--no-lpips"), "relu5_3's receptive field of 196 px"),
        (("--layers", "relu1_2"), "receptive field of 196 px"),
        (("--weights", "/no/such/file.pth"), "no such file"),
        (("--curve-size", "8", "--layers", "conv2_2", "--no-lpips"), "squares of 8 px"),
        (("--noise-seeds", "0"), "not a whole number of 1 or more"),
        (("--edge", "mirror"), "invalid choice"),
        (("--device", "cuda"), "no CUDA device"),
        (("--reference", "/no/such/file.png"), "no such file"),
        (("--summary-size", "16"), "'16' is not a whole number of 32 or more"),
        (("--seed", str(2**64)), "not a whole number from 0 to 2^63 - 1"),
    ],
)
def test_bad_flags_end_in_one_line(fails, folder, tmp_path, flags, words):
    if flags[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    tiny = () if "--layers" in flags else TINY
    assert words in fails(p1, "--images", folder, "--out", tmp_path, *tiny, *flags)


def test_a_1x1_image_is_refused(fails, tmp_path):
    from PIL import Image

    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    assert "only 1 px wide" in fails(p1, "1.1", "--image", tmp_path / "dot.png", "--out", tmp_path)
    flags = ("--image", tmp_path / "dot.png", "--out", tmp_path, "--shift", "0")
    assert "SSIM's window of 11 px" in fails(p1, "1.1", *flags)


def test_a_picture_is_not_calibrated_with_itself(fails, folder, tmp_path):
    flags = ("--image", folder / "a.png", "--reference", folder / "a.png", "--out", tmp_path)
    assert "no other picture" in fails(p1, "1.2", *flags, *TINY)
