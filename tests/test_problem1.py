import json
import math

import numpy as np
import pytest
import torch

import problem1_perceptual as p1
from common.data import images as data
from common.errors import UserError
from common.networks.calibration import calibrate
from common.networks.losses import compare
from common.networks.vgg import VGG16Features
from common.reporting import problem1
from tests.conftest import picture

TINY = ("--layers", "relu1_2", "--no-lpips", "--weights", "random", "--summary-size", "32")


def image(seed: int, width: int = 48, height: int = 40) -> torch.Tensor:
    return data.to_tensor(picture(seed, width, height))


# -------------------------------------------------------------------------------- shift and noise


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


def test_bf16_stays_within_2_percent_of_fp32(real_weights):
    photos = [data.to_tensor(photo)[:, :196, :197] for photo in data.embedded_photos().values()]
    original, translated = p1.translate(photos[0], 1, "crop")
    noise = p1.unit_noise(original.shape, 0)
    noisy = {f"sigma {sigma}": p1.add_noise(original, sigma, noise)[0] for sigma in (2, 25)}
    images = {"o": original, "shift": translated, "unrelated": photos[1][..., :196], **noisy}
    pairs = {name: ("o", name) for name in images if name != "o"}

    def relative(dtype):
        network = VGG16Features(real_weights, ["relu1_2", "relu2_2", "relu3_1", "relu5_3"], dtype)
        raw = compare(network, images, pairs)
        return calibrate(raw, [raw["unrelated"]])

    exact, rounded = relative(torch.float32), relative(torch.bfloat16)
    for pair, losses in exact.items():
        for loss, (_, value) in losses.items():
            assert rounded[pair][loss][1] == pytest.approx(value, rel=0.02), (pair, loss)


# ---------------------------------------------------------------------------------- dose-response


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
    equal = p1.shift_equivalent_sigma(shift, np.tile(noise, (2, 3, 1)))
    assert equal["low"] == pytest.approx(10)
    assert equal["high"] == pytest.approx(20)
    assert equal["sigma"] == pytest.approx(math.sqrt((10**2 + 20**2) / 2))


def test_dose_copies_move_real_pixels_in():
    region = image(0, width=32 + 16, height=32)
    copies = p1.dose_copies(region, [p1.unit_noise(torch.Size([3, 32, 32]), 0)])
    assert torch.equal(copies["original"], region[..., :32])
    assert torch.equal(copies["shift 16"], region[..., 16:])
    assert len(copies) == 1 + len(p1.SHIFTS_PX) - 1 + len(p1.SIGMAS) - 1
    assert {copy.shape for copy in copies.values()} == {(3, 32, 32)}


def prepare(folder, *flags):
    flags = map(str, ("--images", folder, *flags, *TINY))
    return p1.prepare(p1.make_parser().parse_args(list(flags)))


def test_squares_are_central_and_small_references_stay_whole(folder, tmp_path):
    from PIL import Image

    for name, width in (("large", 60), ("small", 40)):
        Image.fromarray(picture(9, width, 34)).save(tmp_path / f"{name}.png")
    large, small = (str(tmp_path / f"{name}.png") for name in ("large", "small"))
    shared = prepare(folder, "1.3", "--reference", large, small, "--curve-size", "30")
    squares = p1.squares(shared)
    for name, photo in shared.photos.items():
        np.testing.assert_array_equal(squares.photos[name], photo[5:35, 1:47])
    references = squares.references
    region = data.to_tensor(picture(9, 60, 34)[2:32, 7 : 7 + 30])
    assert torch.equal(references.picture(large, (30, 30)), region)
    assert references.used(squares.sizes)["references_resized"] == {small: "40x34"}


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
        for key in ("command", "seed", "device", "data", "weights_source", "precision"):
            assert key in part["provenance"]
        assert part["provenance"]["left_out"] == []
    names = {path.name for path in (tmp_path / "problem1").iterdir()}
    assert {"1.1_shift.png", "1.2_feature_losses.png", "1.3_noise.png"} <= names
    assert {"1.3_dose_response.png", "1.3_shift_equivalent_noise.txt"} <= names
    assert "1.3_dose_response_random.png" not in names  # the control of the control
    for table in ("1.2_feature_losses.txt", "1.3_noise.txt", "1.3_dose_response.txt"):
        assert "RANDOM WEIGHTS" in (tmp_path / "problem1" / table).read_text()
    assert "RANDOM WEIGHTS" in out


def test_tables_are_made_again_from_results_json(run, folder, tmp_path):
    run(p1, "--images", folder, "--out", tmp_path, "--noise-seeds", "1", *TINY)
    parts, tag = results(tmp_path)["parts"], "RANDOM WEIGHTS (control), 3 photo(s)"
    tables, figures = problem1.dose_reports(parts["1.3"], {"weights": tag})
    tables |= {
        "1.1_pixel_losses.txt": problem1.shift_table(parts["1.1"]),
        "1.2_feature_losses.txt": problem1.feature_table(parts["1.2"], 1, "crop", tag),
        "1.3_noise.txt": problem1.noise_table(parts["1.3"], tag),
    }
    for name, text in tables.items():
        assert (tmp_path / "problem1" / name).read_text() == text
    assert list(figures) == ["1.3_dose_response.png"]


def test_parts_1_2_and_1_3_share_their_passes(run, folder, tmp_path, monkeypatch):
    compared = []
    monkeypatch.setattr(
        "common.networks.calibration.compare",
        lambda *args: compared.append(args) or compare(*args),
    )
    run(p1, "--no-curves", "--images", folder, "--out", tmp_path, *TINY)
    ((_, images, _, _),) = compared
    assert len(images) == 3 * 4


def test_a_run_without_curves_takes_those_of_the_run_before_away(run, folder, tmp_path):
    flags = ("--images", folder, "--out", tmp_path, *TINY)
    assert run(p1, "1.1", "1.3", "--noise-seeds", "1", *flags)[0] == 0
    own = tmp_path / "problem1" / "1.3_my_notes.txt"
    own.write_text("a reader's own")
    assert run(p1, "1.3", "--no-curves", *flags)[0] == 0
    names = {path.name for path in (tmp_path / "problem1").iterdir()}
    assert {"1.3_noise.txt", "1.1_shift.png", own.name} <= names
    assert not [name for name in names if "dose_response" in name]


def test_the_same_command_gives_the_same_numbers(run, folder, tmp_path):
    losses = []
    for name in ("first", "second"):
        out = tmp_path / name
        run(p1, "1.2", "1.3", "--no-curves", "--images", folder, "--out", out, *TINY)
        parts = results(out)["parts"]
        losses.append([parts["1.2"]["losses"], parts["1.3"]["losses"]])
    assert losses[0] == losses[1]


def test_one_part_alone_measures_the_same_as_all_parts(run, folder, tmp_path):
    run(p1, "1.2", "1.3", "--no-curves", "--images", folder, "--out", tmp_path / "both", *TINY)
    run(p1, "1.3", "--no-curves", "--images", folder, "--out", tmp_path / "alone", *TINY)
    both, alone = (results(tmp_path / name)["parts"]["1.3"] for name in ("both", "alone"))
    assert alone["losses"] == both["losses"]
    assert alone["losses_translated"] == both["losses_translated"]


def test_one_image_is_calibrated_with_the_embedded_photos_and_says_so(run, folder, tmp_path):
    path = folder / "a.png"
    code, out, err = run(p1, "1.2", "--image", path, "--out", tmp_path, *TINY)
    assert code == 0, err
    assert results(tmp_path)["parts"]["1.2"]["references"] == sorted(data.EMBEDDED_PHOTOS)
    assert "Another picture: astronaut (512x512), chelsea (451x300)" in out
    part = results(tmp_path)["parts"]["1.2"]
    assert part["losses"]["l1"]["low"] is None
    problem1.feature_figure(part, 1, "drawn again")(tmp_path / "again.png")
    assert (tmp_path / "again.png").exists()


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
    reason = "broken.jpg: not an image that Pillow can read; convert it to PNG or JPEG"
    assert err == f"left out 1 of {folder}: {reason}\n"
    assert len(results(tmp_path)["parts"]["1.1"]["images"]) == 3
    assert results(tmp_path)["parts"]["1.1"]["provenance"]["left_out"] == [reason]


def test_what_a_folder_holds_beside_pictures_is_counted_on_one_line(run, folder, tmp_path):
    from PIL import Image

    (folder / ".DS_Store").write_text("")
    (folder / "._a.png").write_text("a Mac's")
    (folder / "IMG_1.HEIC").write_text("a phone's")
    (folder / "one\ntwo.jpg").write_text("no image")
    Image.fromarray(picture(7)).save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "more").mkdir()
    code, _, err = run(p1, "1.1", "--images", folder, "--out", tmp_path)
    assert code == 0
    left_out = [
        "._a.png: hidden",
        "IMG_1.HEIC: no image by its ending; rename or convert it",
        "link.png: a link that leads out of the folder; copy it, or give it by --image",
        "more: a folder",
        "one\ntwo.jpg: not an image that Pillow can read; convert it to PNG or JPEG",
    ]
    first = "; ".join(left_out[:3])
    assert err == f"left out 5 of {folder}: {first}; and 2 more, see results.json\n"
    assert results(tmp_path)["parts"]["1.1"]["provenance"]["left_out"] == left_out
    assert len(results(tmp_path)["parts"]["1.1"]["images"]) == 3


def test_a_folder_of_pictures_may_be_a_link(run, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    code, _, err = run(p1, "1.1", "--images", tmp_path / "link", "--out", tmp_path)
    assert (code, err) == (0, "")
    assert len(results(tmp_path)["parts"]["1.1"]["images"]) == 3


def test_only_so_many_references_are_drawn_as_asked(folder):
    chosen = prepare(folder, "1.2", "--max-references", "1").references.chosen
    assert all(len(names) == 1 and names != [photo] for photo, names in chosen.items())
    assert len(chosen) == 3


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
        (("--references", "a.png"), "did you mean --reference?"),
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
