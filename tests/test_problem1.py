import json
from functools import partial

import pytest
import torch
from PIL import Image

import problem1_perceptual as p1
from common.data import images as data
from common.networks.distortions import DISTORTIONS, add_noise, translate, unit_noise
from common.networks.losses import compare, features_of, registry
from common.networks.vgg import VGG16Features
from common.reporting import problem1

TINY = ("--layers", "relu1_2", "--no-lpips", "--weights", "random")


def test_bf16_stays_within_2_percent_of_fp32(real_weights):
    photos = [data.to_tensor(photo)[:, :196, :197] for photo in data.embedded_photos().values()]
    original, translated = translate(photos[0], 1, "crop")
    noise = unit_noise(original.shape, 0)
    noisy = {f"sigma {sigma}": add_noise(original, sigma, noise)[0] for sigma in (2, 25)}
    images = {"o": original, "shift": translated, "unrelated": photos[1][..., :196], **noisy}
    pairs = [("o", name) for name in images if name != "o"]

    def relative(dtype):
        network = VGG16Features(real_weights, ["relu1_2", "relu2_2", "relu3_1", "relu5_3"], dtype)
        raw = compare(registry(network), partial(features_of, network), images, pairs)
        return {
            pair: {loss: value / raw["o", "unrelated"][loss] for loss, value in row.items()}
            for pair, row in raw.items()
        }

    exact, rounded = relative(torch.float32), relative(torch.bfloat16)
    for pair, losses in exact.items():
        for loss, value in losses.items():
            assert rounded[pair][loss] == pytest.approx(value, rel=0.02), (pair, loss)


# ---------------------------------------------------------------------------- the script as a whole


def results(out):
    return json.loads((out / "problem1" / "results.json").read_text())


def test_all_parts_on_a_folder_and_their_tables_again_from_results_json(run, folder, tmp_path):
    code, out, err = run(p1, "--images", folder, "--out", tmp_path, "--noise-seeds", "2", *TINY)
    assert code == 0, err
    parts, tag = results(tmp_path)["parts"], "RANDOM WEIGHTS (control), 3 photo(s)"
    row = parts["1.1"]["images"]["a.png"]
    assert list(row) == ["size", "l1", "l2", "l1_uint8", "l2_uint8", "psnr", "ssim"]
    assert row["size"] == [48, 40]
    assert parts["1.2"]["total_params"] == 138_357_544
    losses = {"l1", "l2", "relu1_2", "dssim", "mae_relu1_2"}
    assert parts["1.2"]["losses"].keys() == losses
    assert parts["1.2"]["weights"] == {"source": "random (seed 0)", "sha256": None}
    assert parts["1.3"]["losses"].keys() == losses | {"psnr", "ssim"}
    assert parts["1.3"]["shift_equivalent_sigma_intervals"]["weights"].keys() == losses
    assert parts["1.3"]["curves"]["sigma"] == list(p1.TRAINED.sigmas)
    assert parts["1.3"]["order_turns"][0].keys() == {"a", "b", "sigma", "low", "high"}
    assert parts["1.3"]["slopes"].keys() == losses | {"sigma"}
    assert parts["1.3"]["distortions"]["weights"].keys() == losses
    tables, figures = problem1.dose_reports(parts["1.3"], {"weights": tag})
    more = problem1.feature_reports(parts["1.2"], 1, "crop", {"weights": tag})
    tables |= more[0] | {"1.1_pixel_losses.txt": problem1.shift_table(parts["1.1"])}
    for name, text in tables.items():
        assert text in out
        assert (tmp_path / "problem1" / name).read_text() == text
    drawn = {"1.1_shift.png", "1.3_noise.png", "1.3_doses.jpg", *figures, *more[1]}
    files = {path.name for path in (tmp_path / "problem1").glob("1.*")}
    assert files == {*tables, "1.2_vgg16_summary.txt", *drawn}
    assert "1.3_dose_response_random.png" not in files  # random weights need no control


def found(folder, *flags):
    """The results of parts as results.json stores them, without tables and figures."""
    args = p1.make_parser().parse_args([*flags, "--images", str(folder), *TINY])
    shared = p1.prepare(args)
    return json.dumps({part: p1.PARTS[part](shared).result for part in args.parts})


def test_parts_1_2_and_1_3_share_their_passes(folder, monkeypatch):
    passes = []
    monkeypatch.setattr(
        "common.studies.perceptual.features_of",
        lambda *args: passes.append(1) or features_of(*args),
    )
    found(folder, "1.2", "1.3")
    copies = 4 + len(p1.TRAINED.shifts) - 1 + len(p1.TRAINED.noises) - 1 + len(DISTORTIONS)
    assert len(passes) == 3 * copies


def test_one_part_alone_measures_the_same_as_all_parts(folder):
    alone = json.loads(found(folder, "1.2")) | json.loads(found(folder, "1.3"))
    assert json.dumps(alone) == found(folder, "1.2", "1.3")


def test_another_entry_of_the_registry_is_in_every_table_and_figure(
    run, folder, tmp_path, monkeypatch
):
    def with_another(network):
        another = {"mine": lambda a, b: (a["relu1_2"] - b["relu1_2"]).abs().amax()}
        return registry(network) | another

    monkeypatch.setattr("common.studies.perceptual.registry", with_another)
    drawn = []

    def draw(path, **given):
        drawn.append(str(given))
        Image.new("RGB", (2, 2)).save(path, "PNG")

    for name in ("plotting.dots", "plotting.dose_response", "plotting.ratio_grid"):
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
    monkeypatch.setattr(p1, "DRAWS", 2)
    flags = ("--layers", "relu1_2", "pool1", "relu2_1", "--no-lpips")
    flags += ("--curve-size", "24", "--images", folder, "--out", tmp_path)
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


def test_one_image_is_calibrated_with_the_embedded_photos_and_says_so(run, folder, tmp_path):
    code, out, err = run(p1, "1.2", "--image", folder / "a.png", "--out", tmp_path, *TINY)
    assert code == 0, err
    part = results(tmp_path)["parts"]["1.2"]
    assert part["references"] == sorted(data.EMBEDDED_PHOTOS)
    assert "Another picture: astronaut, chelsea" in out
    assert part["losses"]["l1"]["low"] is None


def test_what_a_folder_holds_beside_pictures_is_named_on_one_line(run, folder, tmp_path):
    (folder / ".DS_Store").write_text("")
    (folder / "._a.png").write_text("a Mac's")
    (folder / "IMG_1.HEIC").write_text("a phone's")
    (folder / "one\ntwo.jpg").write_text("no image")
    (folder / "more").mkdir()
    (tmp_path / "linked").symlink_to(folder)
    code, _, err = run(p1, "1.1", "--images", tmp_path / "linked", "--out", tmp_path)
    assert code == 0
    part = results(tmp_path)["parts"]["1.1"]
    left_out = part["provenance"]["left_out"]
    names = ["._a.png", "IMG_1.HEIC", "more", "one\ntwo.jpg"]
    assert [reason.split(": ")[0] for reason in left_out] == names
    first = "; ".join(left_out[:3])
    assert err == f"left out 4 of {tmp_path / 'linked'}: {first}; and 1 more, see results.json\n"
    assert list(part["images"]) == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--shift", "48"), "48x40 px"),
        (("--layers", "32"), "no such layer"),
        (("--layers", "relu5_3", "--no-lpips"), "the 196 px that relu5_3 or SSIM looks at"),
        (("--layers", "relu1_2"), "the 196 px that"),
        (("--weights", "/no/such/file.pth"), "no such file"),
        (("--curve-size", "8", "--layers", "conv2_2", "--no-lpips"), "squares of 8 px"),
        (("--device", "cuda"), "no CUDA device"),
        (("--reference", "/no/such/file.png"), "no such file"),
    ],
)
def test_bad_flags_end_in_one_line(fails, folder, tmp_path, flags, words):
    if flags[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    tiny = () if "--layers" in flags else TINY
    assert words in fails(p1, "--images", folder, "--out", tmp_path, *tiny, *flags)


def test_a_1x1_image_is_refused(fails, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    flags = ("--image", tmp_path / "dot.png", "--out", tmp_path)
    assert "SSIM's window of 11 px" in fails(p1, "1.1", *flags, "--shift", "0")


def test_a_picture_is_not_calibrated_with_itself(fails, folder, tmp_path):
    flags = ("--image", folder / "a.png", "--reference", folder / "a.png", "--out", tmp_path)
    assert "no other picture" in fails(p1, "1.2", *flags, *TINY)
