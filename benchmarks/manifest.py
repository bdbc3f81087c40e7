"""How long does it take to list and draw ImageNet's class folders, and how much memory?

Made class folders of empty files (real files, not links) in a temporary folder, 1,000 x 1,300 as
in ImageNet-1k, of which 500 x 600 are drawn; nothing is decoded. Making them takes a minute.

    python -m benchmarks.manifest
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from benchmarks import report
from common import cli, files
from common.data import manifest
from common.errors import guard
from common.reporting import results, tables

LIMIT_SECONDS, LIMIT_MIB = 20, 1024


def make_folders(root: Path, class_folders: int, images: int) -> None:
    """Class folders of empty files, named as ImageNet's are."""
    for number in tqdm(range(class_folders), desc="making folders", disable=None):
        class_id = f"n{number:08d}"
        folder = root / class_id
        folder.mkdir()
        for image in range(images):
            (folder / f"{class_id}_{image}.JPEG").touch()


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB, its libraries included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def time_draws(root: Path, args: argparse.Namespace) -> list[float]:
    """Seconds of each repeat of listing and drawing."""
    seconds = []
    for _ in range(args.repeats):
        start = time.perf_counter()
        drawn, *_ = manifest.choose(root, args.classes, args.per_class, args.seed, False)
        seconds.append(time.perf_counter() - start)
        assert len(drawn) == args.classes
    return seconds


def main() -> None:
    args = parse_args()
    folder, before = files.make_folder(args.out / "benchmarks"), peak_mib()
    with tempfile.TemporaryDirectory() as root:
        make_folders(Path(root), args.class_folders, args.images)
        seconds = time_draws(Path(root), args)
    result = {
        "command": f"python -m benchmarks.manifest {' '.join(sys.argv[1:])}".strip(),
        "environment": results.environment(),
        "class_folders": args.class_folders,
        "images": args.images,
        "classes": args.classes,
        "per_class": args.per_class,
        "seconds": seconds,
        "peak_mib": peak_mib(),
        "peak_mib_before": before,
        "limit_seconds": LIMIT_SECONDS,
        "limit_mib": LIMIT_MIB,
    }
    text = show(result)
    report.keep(folder, "manifest", text, result)


def show(result: dict) -> str:
    """The table of time and memory beside their limits."""
    caption = (
        f"Listing {result['class_folders']:,} class folders of {result['images']:,} empty files"
        f" just made, and drawing {result['classes']} x {result['per_class']};\n"
        f"the slowest of {len(result['seconds'])} repeats. Memory includes"
        f" {result['peak_mib_before']:.0f} MiB held before, PyTorch's for the most part."
    )
    records = [
        {"what": "seconds", "measured": f"{max(result['seconds']):.1f}", "limit": LIMIT_SECONDS},
        {"what": "peak memory in MiB", "measured": f"{result['peak_mib']:.0f}", "limit": LIMIT_MIB},
    ]
    columns = {"": "{what}", "measured": "{measured}", "limit": "{limit}"}
    return tables.table(caption, columns, records)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    add("--class-folders", type=cli.positive, default=1000, help="class folders made")
    add("--images", type=cli.positive, default=1300, help="empty files in each")
    add("--classes", type=cli.positive, default=500, help="classes drawn")
    add("--per-class", type=cli.positive, default=600, help="images drawn of each")
    add("--repeats", type=cli.positive, default=3, help="timed repeats")
    add("--seed", type=cli.seed, default=0, help="seed of the draw")
    add("--out", type=cli.path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
