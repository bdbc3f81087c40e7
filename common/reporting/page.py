"""The README, the chapters and the report pages, rendered from templates and from results.

    python -m common.reporting.page
    python -m common.reporting.page --compare RUN_A RUN_B      a rerun beside a run of before

A report page, outputs/report.html and outputs/published/report.html, is that of `html`. A
comparison, of two folders such as outputs and outputs/published, ends in exit code 1 where a
number differs that no training decides.

The words are those of templates/*.md (Jinja2) beside this file; numbers alone are filled in:
part("1.3"): a part's result in outputs/published; part("3.4", "problem3/stems") that of a folder,
None where it was not published.
bench("flowers"): a benchmark, None where it was not published. claims: claims.json, by part.
find(rows, gamma=1): the first row of a list that has these values.
Filters: number, interval, points (an interval with signs), duration.
"""

import json
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import files, job
from common.cli import Parser, path
from common.errors import guard
from common.reporting import html, html_compare, results

PUBLISHED = results.ROOT / "outputs" / "published"
TEMPLATES, CLAIMS = (Path(__file__).with_name(name) for name in ("templates", "claims.json"))
PAGES = {f"problem{n}": f"outputs/published/problem{n}" for n in (1, 2, 3)}
PAGES |= {"README": ".", "data": "data", "benchmarks": "benchmarks", "faults": "tests/faults"}


def part(name: str, folder: str = "") -> dict | None:
    return results.read(PUBLISHED / (folder or f"problem{name[0]}"))["parts"].get(name)


def bench(name: str) -> dict | None:
    path = PUBLISHED / "benchmarks" / f"{name}.json"
    return files.load_json(path) if path.exists() else None


def find(rows: list[dict], **wanted) -> dict:
    return next(row for row in rows if wanted.items() <= row.items())


def interval(row: Mapping, digits: int = 1, form: str = "") -> str:
    """A row's value with its 95 % interval, such as "2.2 (1.9 to 2.5)"."""
    key = next(key for key in ("sigma", "relative", "mean", "test_top1") if key in row)
    ends = ("test_top1_low", "test_top1_high") if key == "test_top1" else ("low", "high")
    return "{} ({} to {})".format(*(f"{row[k]:{form}.{digits}f}" for k in (key, *ends)))


def duration(seconds: float) -> str:
    """Seconds in words: "44 s", "25 min" or "1.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


FILTERS = {"interval": interval, "points": lambda row: interval(row, form="+")}
FILTERS |= {"number": lambda value, digits=0: f"{value:,.{digits}f}", "duration": duration}


def render(name: str) -> str:
    """A page's text; a value that is not there is an error."""
    loader = FileSystemLoader(TEMPLATES, encoding="utf-8")
    pages = Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True)  # noqa: S701
    pages.filters |= FILTERS
    claims = {row["part"]: row for row in json.loads(CLAIMS.read_text("utf-8"))}
    pages.globals |= {
        "part": cache(part),
        "bench": bench,
        "find": find,
        "claims": claims,
        "zip": zip,
    }
    return pages.get_template(f"{name}.md").render() + "\n"


def compare(a: Path, b: Path) -> None:
    """Say how two folders of results differ, and exit with 1 where they should not."""
    found = html_compare.compare(a, b)
    job.say(*html_compare.words(found, a, b))
    if found.differ:
        sys.exit(1)


def main() -> None:
    parser = Parser(__doc__)
    how = {"nargs": 2, "type": path, "metavar": ("RUN_A", "RUN_B")}
    parser.add("--compare", **how, help="compare two folders of results, render nothing")
    args = parser.parse_args()
    if args.compare:
        compare(*args.compare)
        return
    for name, folder in PAGES.items():
        with files.atomic(page := results.ROOT / folder / "README.md") as temporary:
            temporary.write_text(render(name), "utf-8")
        job.say(f"-> {page}")
    for folder in ("outputs", "outputs/published"):
        html.write(results.ROOT / folder)


if __name__ == "__main__":
    sys.exit(guard(main))
