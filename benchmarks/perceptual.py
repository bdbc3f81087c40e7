"""How fast are Problem 1's feature losses beside the straightforward way and the lpips package?

In one process, on the same photos and threads, in turn: (a) ours, one pass an image; (b) a
truncated VGG-16 a layer, run again for each image of each pair; (c) the lpips package with the
same weights, for the LPIPS column alone. Peak memory: each way in a process of its own.

    python -m benchmarks.perceptual             3 repeats
    python -m benchmarks.perceptual --large     also a 1920x2880 image through parts 1.1 to 1.3
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import lpips
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers
from tqdm import tqdm

import problem1_perceptual as p1
from common import cli, data
from common.vgg import LAYERS, VGG16Features, layer_name
from common.weights import Weights, load_vgg16

LAYER_NAMES = [layer_name(number) for number in p1.REPORT_LAYERS]
# Five of the six pairs that the report's four images form.
PAIRS = {
    "shift": ("original", "translated"),
    "noise": ("original", "noisy original"),
    "noise translated": ("translated", "noisy translated"),
    "shift and noise": ("original", "noisy translated"),
    "shift of noisy": ("noisy original", "noisy translated"),
}


WAYS = ("ours, 4 layers", "straightforward, 4 layers", "ours, LPIPS", "lpips package")


def photo_images(name: str) -> dict[str, Tensor]:
    """The report's four images of one embedded photo."""
    image = data.to_tensor(data.embedded_photos()[name])
    images = {}
    images["original"], images["translated"] = p1.translate(image, 1, "crop")
    noise = p1.unit_noise(images["original"].shape, 0)
    for name in ("original", "translated"):
        images[f"noisy {name}"], _ = p1.add_noise(images[name], 25, noise)
    return images


def ours(network: VGG16Features, images: dict[str, Tensor]) -> dict[str, dict]:
    """All pairs in one pass an image."""
    return p1.compare(network, images, PAIRS)


@torch.no_grad()
def straightforward(layers: nn.Sequential, images: dict[str, Tensor]) -> dict[str, dict]:
    """A truncated network a layer, run again for each image of each pair."""
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    losses: dict[str, dict] = {}
    for pair, (a, b) in PAIRS.items():
        losses[pair] = {}
        for name in LAYER_NAMES:
            truncated = layers[: LAYERS[name].number]
            map_a, map_b = (truncated(((images[one] - mean) / std)[None]) for one in (a, b))
            losses[pair][name] = nn.functional.mse_loss(map_a, map_b).item()
    return losses


@torch.no_grad()
def lpips_package(package: nn.Module, images: dict[str, Tensor]) -> dict[str, dict]:
    """The lpips package on every pair."""
    return {
        pair: {"lpips": package(images[a][None], images[b][None], normalize=True).item()}
        for pair, (a, b) in PAIRS.items()
    }


def make_ways(weights: Weights) -> dict:
    """Name -> function of the four images, each with a network of its own."""
    layers = make_layers(cfgs["D"])
    layers.load_state_dict(weights.features)
    with warnings.catch_warnings(action="ignore"):  # lpips calls torchvision the old way
        package = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    package.net.load_state_dict(
        dict(zip(package.net.state_dict(), weights.features.values(), strict=True))
    )
    without_lpips = replace(weights, lpips_heads=None)
    functions = (
        partial(ours, VGG16Features(without_lpips, LAYER_NAMES)),
        partial(straightforward, layers),
        partial(ours, VGG16Features(weights, [])),
        partial(lpips_package, package),
    )
    return dict(zip(WAYS, functions, strict=True))


def check_agreement(ways: dict, images: dict[str, Tensor]) -> None:
    """The ways compared must compute the same; this is their warm-up too."""
    found = {name: way(images) for name, way in ways.items()}
    for pair in PAIRS:
        for name in LAYER_NAMES:
            a, b = (found[f"{way}, 4 layers"][pair][name] for way in ("ours", "straightforward"))
            np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=f"{pair}, {name}")
        a, b = (found[way][pair]["lpips"] for way in ("ours, LPIPS", "lpips package"))
        np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=f"{pair}, LPIPS")


def run_child(*command: str) -> tuple[float, float]:
    """Seconds and peak resident GiB of a Python command in a process of its own."""
    start = time.perf_counter()
    child = subprocess.Popen([sys.executable, *command], cwd=cli.ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def large_image() -> dict:
    """A 1920x2880 image through parts 1.1 to 1.3 without the dose-response."""
    with tempfile.TemporaryDirectory() as folder:
        photo = data.fit_to(data.embedded_photos()["astronaut"], 1920, 2880)
        Image.fromarray(photo).save(f"{folder}/large.png")
        command = ["problem1_perceptual.py", "--no-curves", "--image", f"{folder}/large.png"]
        seconds, peak_gib = run_child(*command, "--out", folder)
    return {"size": [1920, 2880], "seconds": seconds, "peak_gib": peak_gib}


def measure_memory(args: argparse.Namespace) -> dict:
    """Peak GiB of each way, and of the large image where it is wanted."""
    alone = ("-m", "benchmarks.perceptual", "--photo", args.photo, "--alone")
    return {
        "large_image": large_image() if args.large else None,
        "peak_gib": {name: run_child(*alone, name)[1] for name in WAYS},
    }


def time_in_turn(ways: dict, images: dict[str, Tensor], repeats: int) -> dict[str, list[float]]:
    """Seconds of every repeat of every way, the ways in turn so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(repeats), desc="repeats", disable=None):
        for name, way in ways.items():
            start = time.perf_counter()
            way(images)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over repeats of the ratio within a repeat."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def main() -> None:
    args = parse_args()
    if args.alone:
        make_ways(load_vgg16("auto", 0))[args.alone](photo_images(args.photo))
        return
    folder = cli.make_folder(args.out / "benchmarks")
    # Linux counts the parent's memory at the start of a child in the child's peak: children first.
    memory = measure_memory(args)
    images, ways = photo_images(args.photo), make_ways(load_vgg16("auto", 0))
    check_agreement(ways, images)
    seconds = time_in_turn(ways, images, args.repeats)
    found = {
        "command": f"python -m benchmarks.perceptual {' '.join(sys.argv[1:])}".strip(),
        "environment": cli.environment() | {"threads": torch.get_num_threads()},
        "photo": args.photo,
        "size": list(images["original"].shape[:0:-1]),
        "seconds": seconds,
        "straightforward_over_ours": median_ratio(*list(seconds.values())[1::-1]),
        "lpips_package_over_ours": median_ratio(*list(seconds.values())[:1:-1]),
        **memory,
    }
    show(found, folder)


def show(found: dict, folder: Path) -> None:
    """Table and JSON."""
    ratios = ["1", f"{found['straightforward_over_ours']:.2f}"]
    ratios += ["1", f"{found['lpips_package_over_ours']:.2f}"]
    rows = [
        [name, f"{statistics.median(times):.2f}", ratio, f"{found['peak_gib'][name]:.2f}"]
        for (name, times), ratio in zip(found["seconds"].items(), ratios, strict=True)
    ]
    (width, height), repeats = found["size"], len(found["seconds"]["ours, LPIPS"])
    caption = (
        f"Five pairs of four {width}x{height} images ({found['photo']}), fp32,"
        f" {found['environment']['threads']} threads; median of {repeats}."
    )
    if large := found["large_image"]:
        caption += (
            "\nA 1920x2880 image through parts 1.1 to 1.3 (--no-curves):"
            f" {large['seconds']:.0f} s, peak {large['peak_gib']:.2f} GiB."
        )
    headers = ["way", "seconds", "over ours", "peak GiB"]
    cli.show_table(folder / "perceptual.txt", caption, headers, rows)
    cli.write_json(folder / "perceptual.json", found)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--repeats", type=cli.positive, default=3, help="timed runs of each way")
    add("--photo", default="chelsea", choices=data.EMBEDDED_PHOTOS, help="the photo")
    add("--large", action="store_true", help="also a 1920x2880 image, minutes")
    add("--out", type=Path, default=Path("outputs"), help="results folder")
    add("--alone", choices=WAYS, help="run this way once and stop: for its peak memory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(cli.guard(main))
