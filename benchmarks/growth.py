"""How time and peak memory grow with the data; each point is measured in a process of its own.

python -m benchmarks growth
python -m benchmarks.growth epoch 4 DIR      one point: an epoch of four times the images
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torchvision.models import efficientnet_v2_s

from benchmarks import photos
from common import cli
from common.data import manifest
from common.data.packed import pack
from common.data.sets import FileSet
from common.errors import guard
from common.networks.losses import compare, features_of, registry
from common.networks.normalized import seeded
from common.networks.vgg import VGG16Features
from common.networks.weights import random_vgg16
from common.reporting.results import ROOT
from common.training import loop
from common.training.convolutions import with_fast_convolutions
from common.training.recipe import Recipe
from common.training.run import Run, Saver, peak_memory_mib

SCALES, CLASSES, WIDTH_PX = (1, 2, 4, 8), 8, 256
CURVES = ("packing", "epoch", "catalogue", "pixels")
CPU = torch.device("cpu")


def exponent(scales: list[float], values: list[float]) -> float:
    """The exponent p of values = c * scales^p, fitted by least squares on logarithms."""
    return float(np.polyfit(np.log(scales), np.log(values), 1)[0])


def measure_growth(quick: bool) -> dict[str, dict]:
    """By curve: scales (times 96 images, or 256 x 240 px), seconds, peak_mib, and their exponents.

    `quick` leaves out the last two scales, and two thirds of the data at each other scale.
    """
    curves, base, scales = {}, 4 if quick else 12, SCALES[:2] if quick else SCALES
    with tempfile.TemporaryDirectory() as folder:
        photos.write_folders(Path(folder, "photos"), CLASSES, base * scales[-1], *photos.ORIGINAL)
        for name in CURVES:
            points = [_in_process(name, base * scale, folder) for scale in scales]
            curve = {key: [point[key] for point in points] for key in ("seconds", "peak_mib")}
            exponents = {f"{key}_exponent": exponent(scales, curve[key]) for key in curve}
            curves[name] = {"scales": scales, **curve, **exponents}
    return curves


def _in_process(name: str, per_class: int, folder: str) -> dict:
    command = [sys.executable, "-m", "benchmarks.growth", name, str(per_class), folder]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def work(name: str, per_class: int, folder: Path) -> Callable[[], object]:
    """The function to time, on so many images per class, or 20 times as many rows of pixels."""
    if name == "pixels":
        network = VGG16Features(random_vgg16(0, want_lpips=False), ["relu1_2", "relu5_3"])
        images = {key: torch.rand(3, 20 * per_class, WIDTH_PX) for key in "ab"}
        losses, features = registry(network), partial(features_of, network)
        return partial(compare, losses, features, images, [("a", "b")])
    if name == "catalogue":
        how = (CLASSES, per_class, (0.7, 0.15, 0.15), 0, False)
        return partial(manifest.draw, folder / "photos", *how)
    paths = sorted((folder / "photos").rglob("*.JPEG"))[: CLASSES * per_class]
    source = FileSet("growth", paths, [0] * len(paths), ["flower"] * CLASSES)
    if name == "packing":
        return lambda: pack(source, 64, Path(tempfile.mkdtemp(dir=folder)), skip_bad=False)
    packed = pack(source, 64, folder / "cache", skip_bad=False)
    network = seeded(partial(efficientnet_v2_s, num_classes=CLASSES), 0)
    recipe = Recipe(1, 32, 64, 1e-4, warmup_epochs=0, ema_decay=0)
    run = Run(with_fast_convolutions(network, CPU), recipe, CPU)
    return partial(loop.fit, Saver(run, folder / "run", {}), packed, packed)


def main() -> None:
    parser = cli.Parser(__doc__)
    parser.add_argument("curve", choices=CURVES, help="what is measured")
    parser.add_argument("per_class", type=cli.positive, metavar="N", help="images of each class")
    parser.add_argument("folder", type=cli.path, metavar="DIR", help="holds photos")
    args = parser.parse_args()
    function, seconds = work(args.curve, args.per_class, args.folder), []
    for _ in range(1 if args.curve == "epoch" else 2):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": min(seconds), "peak_mib": peak_mib()}))


def peak_mib() -> float:
    """Peak memory of this process in MiB; Linux's other count starts at the parent's peak."""
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_memory_mib(CPU)
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    sys.exit(guard(main))
