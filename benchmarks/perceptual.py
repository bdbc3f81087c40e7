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

from benchmarks import report
from common import cli, files
from common.data import images as photos
from common.data.streams import generator
from common.errors import guard
from common.networks.losses import compare
from common.networks.vgg import LAYERS, VGG16Features, layer_name
from common.networks.weights import Weights, load_vgg16
from common.reporting import results, tables

LAYER_NAMES = [layer_name(number) for number in ("4", "9", "12", "30")]  # the report's
SIGMA = 25  # of the noise, in 0-255 units
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
    """The report's four images of an embedded photo: shifted by one pixel, noisy, and both."""
    image = photos.to_tensor(photos.embedded_photos()[name])
    original, translated = image[..., :-1], image[..., 1:]
    noise = torch.randn(original.shape, generator=generator(0)) * (SIGMA / 255)
    return {
        "original": original,
        "translated": translated,
        "noisy original": (original + noise).clamp(0, 1),
        "noisy translated": (translated + noise).clamp(0, 1),
    }


def ours(network: VGG16Features, images: dict[str, Tensor]) -> dict[str, dict]:
    """All pairs in one pass an image."""
    return compare(network, images, PAIRS)


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
            map_a, map_b = (truncated(((images[key] - mean) / std)[None]) for key in (a, b))
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
    losses = {name: way(images) for name, way in ways.items()}
    for pair in PAIRS:
        for name in LAYER_NAMES:
            a, b = (losses[f"{way}, 4 layers"][pair][name] for way in ("ours", "straightforward"))
            np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=f"{pair}, {name}")
        a, b = (losses[way][pair]["lpips"] for way in ("ours, LPIPS", "lpips package"))
        np.testing.assert_allclose(a, b, rtol=1e-4, err_msg=f"{pair}, LPIPS")


def run_child(*command: str) -> tuple[float, float]:
    """Seconds and peak resident GiB of a Python command in a process of its own."""
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, *command], cwd=results.ROOT, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {child.returncode}")
    return time.perf_counter() - start, usage.ru_maxrss / 2**20


def large_image() -> dict:
    """A 1920x2880 image through parts 1.1 to 1.3 without the dose-response."""
    with tempfile.TemporaryDirectory() as folder:
        photo = photos.fit_to(photos.embedded_photos()["astronaut"], 1920, 2880)
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
    folder = files.make_folder(args.out / "benchmarks")
    # Linux counts the parent's memory at the start of a child in the child's peak: children first.
    memory = measure_memory(args)
    images, ways = photo_images(args.photo), make_ways(load_vgg16("auto", 0))
    check_agreement(ways, images)
    seconds = time_in_turn(ways, images, args.repeats)
    result = {
        "command": f"python -m benchmarks.perceptual {' '.join(sys.argv[1:])}".strip(),
        "environment": results.environment() | {"threads": torch.get_num_threads()},
        "photo": args.photo,
        "size": list(images["original"].shape[:0:-1]),
        "seconds": seconds,
        "straightforward_over_ours": median_ratio(*list(seconds.values())[1::-1]),
        "lpips_package_over_ours": median_ratio(*list(seconds.values())[:1:-1]),
        **memory,
    }
    text = table_text(result)
    report.keep(folder, "perceptual", text, result)


def table_text(result: dict) -> str:
    """The table of seconds and memory of each way."""
    over_ours = [1, result["straightforward_over_ours"], 1, result["lpips_package_over_ours"]]
    records = [
        {
            "way": name,
            "seconds": statistics.median(times),
            "over_ours": ratio,
            "peak_gib": result["peak_gib"][name],
        }
        for (name, times), ratio in zip(result["seconds"].items(), over_ours, strict=True)
    ]
    (width, height), repeats = result["size"], len(result["seconds"]["ours, LPIPS"])
    caption = (
        f"Five pairs of four {width}x{height} images ({result['photo']}), fp32,"
        f" {result['environment']['threads']} threads; median of {repeats}."
    )
    if large := result["large_image"]:
        caption += (
            "\nA 1920x2880 image through parts 1.1 to 1.3 (--no-curves):"
            f" {large['seconds']:.0f} s, peak {large['peak_gib']:.2f} GiB."
        )
    columns = {"way": "{way}", "seconds": "{seconds:.2f}", "over ours": "{over_ours:.2f}"}
    return tables.table(caption, columns | {"peak GiB": "{peak_gib:.2f}"}, records)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--repeats", type=cli.positive, default=3, help="timed runs of each way")
    add("--photo", default="chelsea", choices=photos.EMBEDDED_PHOTOS, help="the photo")
    add("--large", action="store_true", help="also a 1920x2880 image, minutes")
    add("--out", type=cli.path, default=Path("outputs"), help="results folder")
    add("--alone", choices=WAYS, help="run this way once and stop: for its peak memory")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
