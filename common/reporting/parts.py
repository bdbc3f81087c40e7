"""How a script runs the parts that its command line asks for, and tells of each."""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from common.cli import duration, title
from common.job import say
from common.reporting import html, results, tensorboard


def run_parts(
    parts: Mapping[str, Callable],
    args: argparse.Namespace,
    folder: Path,
    shared,
    forecast_seconds: Callable[..., float],
    described: Callable[[], dict],
) -> None:
    """Run parts in order, publish what each found as soon as it is there, and make the page.

    A part is called with `shared`, `forecast_seconds` with a part's number and `shared`;
    `described` gives what a part's provenance says beside its command, seed and seconds.
    """
    for number in args.parts:
        seconds = forecast_seconds(number, shared)
        say(f"\n== {number} {title(parts[number])} ({duration(seconds)})")
        start = time.perf_counter()
        findings = parts[number](shared)
        about = results.provenance(args.seed, time.perf_counter() - start, **described())
        results.publish(folder, number, findings, about)
    html.write(args.out)
    if "tensorboard" in args and args.tensorboard:
        tensorboard.write(folder)
