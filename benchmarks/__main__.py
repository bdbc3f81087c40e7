"""How fast is this project compared with its alternatives, and with the machine's peak?

Our way and each peer do the same work in turn, in one process if they can. Ratios are medians over
five rounds or more. OUT/benchmarks gets the numbers after each benchmark, tables at the end.

    make bench                                 all of them, under 40 minutes on a quiet machine
    make bench FLAGS=--quick                   tiny sizes, under 5 minutes: does each one run?
    python -m benchmarks losses-450 growth     two of them; the others keep their results
    python -m benchmarks --out outputs/published     for the page that is made from them
"""

import common.start  # noqa: F401,I001 it sets how threads wait, before torch is loaded
import argparse
import os
import statistics
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch
from torchvision.models import efficientnet_v2_s

from benchmarks import bench, estimate, growth, problem1, problem2, problem3, report  # noqa: F401
from common import cli, files
from common.errors import UserError, guard
from common.job import say
from common.reporting import provenance
from common.training.parallel import pick_device
from common.training.precision import Example, choose_precision

GROWTH = "growth"


def main() -> None:
    args = parse_args()
    names = [*bench.BENCHES, GROWTH]
    if unknown := [name for name in args.names if name not in names]:
        raise UserError(f"no benchmark {unknown[0]}; they are {', '.join(names)}")
    device = pick_device(args.device, threads=args.threads)
    step = Example(partial(efficientnet_v2_s, num_classes=problem2.CLASSES), 32, 64, device)
    machine = bench.Machine(device, choose_precision("auto", step), args.quick)
    folder = files.make_folder(args.out / "benchmarks" / ("quick" if args.quick else ""))
    result = opened(folder, machine)
    failed = []
    for name in args.names or names:
        start = time.perf_counter()
        try:
            if name == GROWTH:
                result["growth"] = growth.measure_growth(args.quick)
            else:
                record = bench.measure(bench.BENCHES[name], machine)
                result["benchmarks"][name] = record | {"git_commit": result["git_commit"]}
        except Exception:  # the other benchmarks still run
            failed.append(name)
            traceback.print_exc()
        say(f"{name}: {time.perf_counter() - start:.0f} s")
        files.save_json(folder / "bench.json", result)
    publish(folder, result)
    if failed:
        raise UserError(f"failed, see above: {', '.join(failed)}")


def opened(folder: Path, machine: bench.Machine) -> dict:
    """The contents of bench.json; it keeps earlier results if they are from this machine."""
    result = {
        "command": provenance.command(),
        "git_commit": provenance.git_commit(),
        "environment": provenance.environment() | {"threads": torch.get_num_threads()},
        "device": machine.device.type,
        "kind": machine.kind,
        "precision_why": machine.precision.why,
        "quick": machine.quick,
        "benchmarks": {},
        "growth": {},
    }
    if (folder / "bench.json").exists():
        before = files.load_json(folder / "bench.json")
        same = ("environment", "device", "kind")
        if all(before[key] == result[key] for key in same):
            result |= {key: before[key] for key in ("benchmarks", "growth")}
    return result | {"peaks": machine.peaks}


def publish(folder: Path, result: dict) -> None:
    """Write the table, the estimate and the figures, which are made from the numbers alone."""
    if "packing" in result["benchmarks"]:
        packing = result["benchmarks"]["packing"]
        seconds = statistics.median(packing["numbers"][bench.OURS])
        decoded = packing["about"]["images"] / seconds / (os.cpu_count() or 1)
        result["estimate"] = estimate.estimate(decoded)
        report.keep(folder, "estimate", estimate.text(result["estimate"]), result["estimate"])
    order = [name for name in bench.BENCHES if name in result["benchmarks"]]
    result["benchmarks"] = {name: result["benchmarks"][name] for name in order}
    report.keep(folder, "bench", report.table_text(result), result)
    with files.atomic(folder / "bench.png") as temporary:
        report.draw_ratios(result, temporary)
    if result["growth"]:
        with files.atomic(folder / "growth.png") as temporary:
            report.draw_growth(result["growth"], temporary)


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add = parser.add
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks (default: all)")
    add("--quick", action="store_true", help="tiny sizes, one round (default: no)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="of the trainings")
    add("--threads", type=cli.positive, help="of a CPU (default: as many as cores)")
    add("--out", type=cli.path, default=Path("outputs"), help="results folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(guard(main))
