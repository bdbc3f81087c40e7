"""Render the README, the chapters and the report pages from templates and results.

    python -m common.reporting.page
    python -m common.reporting.page --compare RUN_A RUN_B      compare a rerun with an earlier run

`html` makes the report pages, outputs/report.html and outputs/published/report.html. --compare
takes two folders of results, such as outputs and outputs/published. Its exit code is 1 if a number
differs that does not depend on training.

The text stands in templates/*.md (Jinja2) beside this file; only numbers are filled in:
part("1.3"): a part's result in outputs/published; part("3.4", "problem3/stems"): its result in a
subfolder; None if it was not published.
bench("flowers"): a benchmark. claims: claims.json, by part.
find(rows, gamma=1): the first row of a list that has these values.
difference_of(a, b): that of `statistics`, between two lists of runs.
Filters: number, interval, points (an interval with signs), duration.
"""

import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import files, job
from common.cli import Parser, duration, path
from common.errors import UserError, guard
from common.reporting import html, html_charts, results
from common.reporting.statistics import difference_of

PUBLISHED = results.ROOT / "outputs" / "published"
PAGES = {f"problem{n}": f"outputs/published/problem{n}" for n in (1, 2, 3)}
PAGES |= {"README": ".", "data": "data", "benchmarks": "benchmarks", "faults": "tests/faults"}


def part(name: str, folder: str = "") -> dict | None:
    return results.read(PUBLISHED / (folder or f"problem{name[0]}"))["parts"].get(name)


def bench(name: str) -> dict:
    return files.load_json(PUBLISHED / "benchmarks" / f"{name}.json")


def find(rows: list[dict], **wanted) -> dict:
    return next(row for row in rows if wanted.items() <= row.items())


def interval(row: Mapping, digits: int = 1, form: str = "") -> str:
    """A row's value with its 95 % interval, such as "2.2 (1.9 to 2.5)"."""
    key, low, high = next(keys for keys in INTERVALS if keys[0] in row)
    return "{} ({} to {})".format(*(f"{row[k]:{form}.{digits}f}" for k in (key, low, high)))


FILTERS = {"interval": interval, "points": lambda row: interval(row, form="+")}
FILTERS |= {"number": lambda value, digits=0: f"{value:,.{digits}f}", "duration": duration}


def render(name: str) -> str:
    """The text of a page; a missing value is an error."""
    loader = FileSystemLoader(html.HERE / "templates", encoding="utf-8")
    pages = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701
    pages.filters |= FILTERS
    claims = {row["part"]: row for row in html.CLAIMS}
    pages.globals |= {"part": cache(part), "bench": bench, "find": find, "claims": claims}
    pages.globals["difference_of"] = difference_of
    return pages.get_template(f"{name}.md").render() + "\n"


# ------------------------------------------------------------- a rerun compared with an earlier run

RELATIVE = 1e-3  # tolerance: another processor may sum in another order
MACHINE = re.compile(  # keys of what depends on the machine: seconds, bytes, paths
    r"(.*_)?(seconds|bytes|second|mib|per_second|seconds_.*)|time_vs_.*|memory_vs_.*"
    r"|source|precision|sha256|.*_sha256"
)
# In parts that train, values do not depend on training if their path's first key matches FIRST, or
# its last key matches LAST.
FIRST = re.compile(
    r"parameters.*|width|epochs|init|recipe|stages|chance.*|noise_block|layer|maps|steps|stem"
    r"|residual"
)
LAST = re.compile(r"parameters.*|classes|processes|mode|seeds|power|gamma|stem|change|chance")
INTERVALS = [(key, "low", "high") for key in ("sigma", "relative", "mean")]
INTERVALS.append(("test_top1", "test_top1_low", "test_top1_high"))


@dataclass
class Comparison:
    """Values of two runs: how many agree, and those that differ as (where, a, b).

    Trained values may differ between processors. `within`: the intervals overlap or, with several
    seeds, the means differ by at most twice the sum of their deviations. `beyond`: neither holds.
    All other values are deterministic: floats agree within RELATIVE, the rest exactly.
    """

    agree: int = 0
    differ: list[tuple] = field(default_factory=list)
    within: list[tuple] = field(default_factory=list)
    beyond: list[tuple] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)


def compare(a: Path, b: Path) -> Comparison:
    """Compare every part that has a result in both folders."""
    first, second = _results(a), _results(b)
    both = [key for key in first if key in second]
    if not both:
        raise UserError(f"no part has a result in {a} and in {b}; name two folders like outputs")
    done = Comparison(alone=sorted(" ".join(key) for key in first.keys() ^ second.keys()))
    trains = [claim["part"] for claim in html.CLAIMS if claim["trains"]]
    for key in both:
        _compare(done, key[1] in trains, (" ".join(key),), first[key], second[key])
    return done


def _results(folder: Path) -> dict[tuple[str, str], dict]:
    """The finished results below a folder, by (name of their subfolder, part)."""
    runs, unread = html.read_runs(folder)
    if unread:
        raise UserError(unread[0])
    every = [run for of_part in runs.values() for run in of_part]
    return {(run.name, run.part): run.result for run in every if not run.unfinished}


def _compare(done: Comparison, trains: bool, path: tuple, a, b) -> None:
    first, last = str(path[1]) if len(path) > 1 else "", str(path[-1])
    is_fixed = not trains or FIRST.fullmatch(first) or LAST.fullmatch(last)
    if _is_nest(a) and _is_nest(b):
        a, b = (dict(enumerate(value)) if isinstance(value, list) else value for value in (a, b))
        for key, rows in () if is_fixed else _trained(done, a, b):
            rows.append((" / ".join(map(str, (*path, key))), a[key], b[key]))
        for key in a:
            # The runs of a training are skipped: their mean is compared.
            if key in b and not MACHINE.fullmatch(str(key)) and not html_charts.is_runs(a[key]):
                _compare(done, trains, (*path, key), a[key], b[key])
    elif is_fixed and _agree(a, b):
        done.agree += 1
    elif is_fixed:
        done.differ.append((" / ".join(map(str, path)), a, b))


def _is_nest(value) -> bool:
    """Whether a value is a dict, or a list of dicts or lists."""
    inside = value if isinstance(value, list) else ()
    return isinstance(value, Mapping) or any(isinstance(item, (Mapping, list)) for item in inside)


def _trained(done: Comparison, a: Mapping, b: Mapping) -> Iterator[tuple[str, list]]:
    """The keys of a row's trained values that differ, each with the list that it belongs in."""
    for key, low, high in INTERVALS:
        values = [row.get(name) for row in (a, b) for name in (key, low, high)]
        if None in values or _agree(a[key], b[key]):
            continue
        within = a[low] <= b[high] and b[low] <= a[high]
        deviations = a.get(f"{key}_std"), b.get(f"{key}_std")
        if None not in deviations:
            within |= abs(a[key] - b[key]) <= 2 * sum(deviations)
        yield key, done.within if within else done.beyond


def _agree(a, b) -> bool:
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_agree, a, b))
    if isinstance(a, float) or isinstance(b, float):
        numbers = all(isinstance(value, (int, float)) for value in (a, b))
        return numbers and math.isclose(a, b, rel_tol=RELATIVE, abs_tol=1e-6)
    return a == b


def words(done: Comparison, a: Path, b: Path) -> list[str]:
    """A comparison as lines of text: one line per difference, then a summary."""
    kinds = {"DIFFERS": done.differ, "beyond its spread": done.beyond}
    kinds["within its spread"] = done.within
    lines = [
        f"{name}: {where}: {html.shown(x)} in {a}, {html.shown(y)} in {b}"
        for name, rows in kinds.items()
        for where, x, y in rows
    ]
    if done.alone:
        lines.append(f"In one of them alone: {', '.join(done.alone)}.")
    count = done.agree + len(done.differ)
    summary = f"{a} agrees with {b} in {done.agree} of {count} numbers that no training decides"
    if done.within or done.beyond:
        summary += f"; {len(done.within)} results of trainings differ within their spread"
        summary += f", {len(done.beyond)} beyond it"
    return [*lines, summary + "."]


def main() -> None:
    parser = Parser(__doc__)
    how = {"nargs": 2, "type": path, "metavar": ("RUN_A", "RUN_B")}
    parser.add("--compare", **how, help="compare two folders of results, render nothing")
    args = parser.parse_args()
    if args.compare:
        found = compare(*args.compare)
        job.say(*words(found, *args.compare))
        sys.exit(1 if found.differ else 0)
    for name, folder in PAGES.items():
        with files.atomic(page := results.ROOT / folder / "README.md") as temporary:
            temporary.write_text(render(name), "utf-8")
        job.say(f"-> {page}")
    for folder in ("outputs", "outputs/published"):
        html.write(results.ROOT / folder)


if __name__ == "__main__":
    sys.exit(guard(main))
