"""A rerun beside a run: which numbers agree, which trainings differ, and beyond what.

A value is one of three kinds. What a machine decides (seconds, bytes, paths) is left out. What a
training decides may differ between processors: it differs beyond its spread where the intervals of
both runs do not meet, or, of several seeds, where their means lie further apart than twice the sum
of their deviations. All else is deterministic: numbers agree within RELATIVE, other values exactly.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from common.reporting import html, html_charts

RELATIVE = 1e-3  # of numbers that another processor's order of summing changes
MACHINE = re.compile(
    r"(.*_)?(seconds|bytes|second|mib|per_second|seconds_.*)|weights|hits|time_vs_.*|memory_vs_.*"
    r"|step_cost_share|source|not_run|precision|forecast_.*|sha256|.*_sha256"
)
TRAINED_PARTS = ("2.2", "2.3", "2.4", "2.5", "2.6", "3.4")
# Of parts that train: what no training decides, by the first key and by the last.
FIXED = re.compile(
    r"parameters.*|width|epochs|init|recipe|stages|chance.*|noise_block|layer|maps|steps|stem"
    r"|residual"
)
FIXED_ROWS = re.compile(r"parameters.*|classes|processes|mode|seeds|power|gamma|stem|change|chance")
INTERVALS = {"test_top1": ("test_top1_low", "test_top1_high")}
INTERVALS |= dict.fromkeys(("mean", "relative", "sigma", "value", "auc"), ("low", "high"))


@dataclass
class Comparison:
    """Values of two runs, counted by kind, and those that differ as (where, a, b)."""

    agree: int = 0
    differ: list[tuple] = field(default_factory=list)
    within: list[tuple] = field(default_factory=list)
    beyond: list[tuple] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)


def compare(a: Path, b: Path) -> Comparison:
    """Compare all parts that two folders of results both have.

    Raises:
        UserError: there is no such part.
    """
    first, second = _parts(a), _parts(b)
    both = [key for key in first if key in second]
    if not both:
        raise UserError(f"no part has a result in {a} and in {b}; name two folders like outputs")
    done = Comparison(alone=sorted(" ".join(key) for key in first.keys() ^ second.keys()))
    for key in both:
        _compare(done, key[1], (" ".join(key),), first[key], second[key])
    return done


def _parts(folder: Path) -> dict[tuple[str, str], dict]:
    """A folder's results by the names of their folder and part."""
    runs, unread = html.read_runs(folder)
    if unread:
        raise UserError(unread[0])
    return {(run.name, run.part): run.result for part in runs.values() for run in part
            if not run.unfinished}  # fmt: skip


def _compare(done: Comparison, part: str, path: tuple[str, ...], a, b) -> None:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        _compare_rows(done, part, path, a, b)
    elif isinstance(a, list) and isinstance(b, list) and any(map(_is_nest, a)):
        _compare_rows(done, part, path, dict(enumerate(a)), dict(enumerate(b)))
    elif part in TRAINED_PARTS and not _is_fixed(path):
        return  # judged where its row has an interval
    elif _agree(a, b):
        done.agree += 1
    else:
        done.differ.append((" / ".join(map(str, path)), a, b))


def _is_nest(value) -> bool:
    return isinstance(value, (Mapping, list))


def _compare_rows(done: Comparison, part: str, path: tuple, a: Mapping, b: Mapping) -> None:
    if part in TRAINED_PARTS and not _is_fixed(path):
        for key, is_within in _trained(a, b):
            where = " / ".join(map(str, (*path, key)))
            (done.within if is_within else done.beyond).append((where, a[key], b[key]))
    for key in a:
        # A training's own rows are told by their mean.
        if key in b and not MACHINE.fullmatch(str(key)) and not html_charts.is_runs(a[key]):
            _compare(done, part, (*path, key), a[key], b[key])


def _trained(a: Mapping, b: Mapping) -> Iterator[tuple[str, bool]]:
    """The trained values of a row that differ: key, and whether within their spread."""
    for key, (low, high) in INTERVALS.items():
        values = [row.get(name) for row in (a, b) for name in (key, low, high)]
        if key not in a or None in values or _agree(a[key], b[key]):
            continue
        within = a[low] <= b[high] and b[low] <= a[high]
        deviations = a.get(f"{key}_std"), b.get(f"{key}_std")
        if None not in deviations:
            within |= abs(a[key] - b[key]) <= 2 * sum(deviations)
        yield key, within


def _is_fixed(path: tuple) -> bool:
    """Whether no training decides what stands at this place of a part that trains."""
    first, last = str(path[1]) if len(path) > 1 else "", str(path[-1])
    return bool(FIXED.fullmatch(first) or FIXED_ROWS.fullmatch(last))


def _agree(a, b) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_agree, a, b))
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(value, (int, float)) for value in (a, b))
        return numbers and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-6)
    return a == b


def words(done: Comparison, a: Path, b: Path) -> list[str]:
    """What a comparison found, a line a difference and the sentence that sums it up."""
    told = []
    for name, rows in (("DIFFERS", done.differ), ("beyond its spread", done.beyond),
                       ("within its spread", done.within)):  # fmt: skip
        told += [f"{name}: {where}: {html.shown(x)} in {a}, {html.shown(y)} in {b}"
                 for where, x, y in rows]  # fmt: skip
    if done.alone:
        told.append(f"In one of them alone: {', '.join(done.alone)}.")
    count, trainings = done.agree + len(done.differ), len(done.within) + len(done.beyond)
    summary = f"{a} agrees with {b} in {done.agree} of {count} numbers that no training decides"
    if trainings:
        summary += f"; {len(done.within)} results of trainings differ within their spread"
        summary += f", {len(done.beyond)} beyond it"
    return [*told, summary + "."]
