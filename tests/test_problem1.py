import json
from functools import partial

import numpy as np
import pytest
import torch

import problem1_perceptual as p1
from common.data import images as data
from common.networks.distortions import add_noise, translate, unit_noise
from common.networks.losses import compare, features_of, registry
from common.networks.vgg import VGG16Features
from common.reporting import problem1
from tests.conftest import picture

TINY = ("--layers", "relu1_2", "--no-lpips", "--weights", "random", "--summary-size", "32")


def image(seed: int, width: int = 48, height: int = 40) -> torch.Tensor:
    return data.to_tensor(picture(seed, width, height))


def test_bf16_stays_within_2_percent_of_fp32(real_weights):
    photos = [data.to_tensor(photo)[:, :196, :197] for photo in data.embedded_photos().values()]
    original, translated = translate(photos[0], 1, "crop")
    noise = unit_noise(original.shape, 0)
    noisy = {f"sigma {sigma}": add_noise(original, sigma, noise)[0] for sigma in (2, 25)}
    images = {"o": original, "shift": translated, "unrelated": photos[1][..., :196], **noisy}
    pairs = {name: ("o", name) for name in images if name != "o"}

    def relative(dtype):
        network = VGG16Features(real_weights, ["relu1_2", "relu2_2", "relu3_1", "relu5_3"], dtype)
        raw = compare(registry(network), partial(features_of, network), images, pairs)
        return {
            pair: {loss: value / raw["unrelated"][loss] for loss, value in row.items()}
            for pair, row in raw.items()
        }

    exact, rounded = relative(torch.float32), relative(torch.bfloat16)
    for pair, losses in exact.items():
        for loss, value in losses.items():
            assert rounded[pair][loss] == pytest.approx(value, rel=0.02), (pair, loss)


def prepare(folder, *flags):
    flags = map(str, ("--images", folder, *flags, *TINY))
    return p1.prepare(p1.make_parser().parse_args(list(flags)))


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
    assert parts["1.2"]["losses"].keys() == {"l1", "l2", "relu1_2", "dssim", "mae_relu1_2"}
    assert parts["1.2"]["weights"] == {"source": "random (seed 0)", "sha256": None}
    assert parts["1.3"]["losses"].keys() == {*parts["1.2"]["losses"], "psnr", "ssim"}
    assert parts["1.3"]["shift_equivalent_sigma"].keys() == parts["1.2"]["losses"].keys()
    assert parts["1.3"]["curves"]["sigma"] == list(p1.TRAINED.sigmas)
    for part in parts.values():
        for key in ("command", "seed", "device", "data", "weights_source", "precision"):
            assert key in part["provenance"]
        assert part["provenance"]["left_out"] == []
    names = {path.name for path in (tmp_path / "problem1").iterdir()}
    assert {"1.1_shift.png", "1.2_feature_losses.png", "1.3_noise.png"} <= names
    assert {"1.3_dose_response.png", "1.3_shift_equivalent_noise.txt"} <= names
    assert "1.3_dose_response_random.png" not in names  # the control of the control
    assert {"1.3_order_turns.txt", "1.3_slopes.txt", "1.3_distortions.png"} <= names
    assert parts["1.3"]["order_turns"][0].keys() == {"a", "b", "sigma", "low", "high"}
    assert parts["1.3"]["slopes"].keys() == {"sigma", *parts["1.2"]["losses"]}
    assert parts["1.3"]["distortions"]["weights"].keys() == parts["1.2"]["losses"].keys()
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
    shown = ["1.3_dose_response.png", "1.3_shift_worth.png", "1.3_distortions.png"]
    assert list(figures) == shown


def test_parts_1_2_and_1_3_share_their_passes(run, folder, tmp_path, monkeypatch):
    passes = []
    monkeypatch.setattr(
        "common.studies.perceptual.features_of",
        lambda *args: passes.append(1) or features_of(*args),
    )
    run(p1, "--no-curves", "--images", folder, "--out", tmp_path, *TINY)
    assert len(passes) == 3 * 4


def test_another_entry_of_the_registry_is_in_every_table_and_figure(
    run, folder, tmp_path, monkeypatch
):
    from PIL import Image

    def with_another(network):
        another = {"mine": lambda a, b: (a["relu1_2"] - b["relu1_2"]).abs().amax()}
        return registry(network) | another

    monkeypatch.setattr("common.studies.perceptual.registry", with_another)
    drawn = []

    def draw(path, **given):
        drawn.append(str(given))
        Image.new("RGB", (2, 2)).save(path, "PNG")

    for name in ("plotting.dots", "plotting.dose_response", "ratios.ratio_grid"):
        monkeypatch.setattr(f"common.reporting.{name}", draw)
    code, _, err = run(p1, "1.2", "1.3", "--images", folder, "--out", tmp_path, *TINY)
    assert code == 0, err
    tables = list((tmp_path / "problem1").glob("1.[23]_*.txt"))
    assert len(tables) == 8
    for path in tables:
        assert ("mine" in path.read_text()) == ("summary" not in path.name), path.name
    assert len(drawn) == 4
    assert all("'mine'" in given for given in drawn)


def test_controls_stand_beside_trained_weights(run, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(p1, "load_vgg16", lambda *_, **__: p1.random_vgg16(9, want_lpips=False))
    flags = ("--layers", "relu1_2", "pool1", "relu2_1", "--no-lpips", "--summary-size", "32")
    flags += ("--draws", "2", "--curve-size", "24", "--images", folder, "--out", tmp_path)
    code, out, err = run(p1, "1.2", "1.3", *flags)
    assert code == 0, err
    parts = results(tmp_path)["parts"]
    for part in ("1.2", "1.3"):
        row = parts[part]["random_weights"]["relu1_2"]
        assert row["low"] < row["relative"] < row["high"]
    pools = parts["1.2"]["pools"]["pool1"]
    assert (pools["before"], pools["after"]) == ("relu1_2", "relu2_1")
    assert list(pools["losses"]) == ["relu1_2", "pool1", "relu2_1"]
    curves = parts["1.3"]["curves"]
    noise = curves["random_weights"]["relu1_2"]["noise"]["relative"]
    assert len(noise) == len(curves["random_sigma"])
    assert parts["1.3"]["distortions"]["random_weights"].keys() == parts["1.2"]["losses"].keys()
    assert parts["1.2"]["borders"]["pictures"] == ["a.png", "b.png"]
    assert "random weights, 2 draws, 2 photos" in out


def test_a_folder_larger_than_memory_allows_is_read_picture_by_picture(folder):
    shared = prepare(folder, "1.3", "--max-images", "2")
    assert len(shared.photos) == 2
    assert shared.photos["a.png" if "a.png" in shared.photos else "b.png"].shape == (40, 48, 3)
    assert not [value for value in vars(shared.photos).values() if isinstance(value, np.ndarray)]


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
    assert "Another picture: astronaut, chelsea" in out
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
        (("--layers", "32"), "no such layer"),
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
