"""The report as one HTML page: report.html beside the results, for any browser, also offline.

    html.write(Path("outputs"))      made from outputs/**/results.json and claims.json

claims.json holds what the page says about each part, except for its runs. The text is in
templates/report.html and findings.html, next to the page's styles and script. uPlot draws the
interactive charts. All other pictures are files that the runs left in their folders.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import files, job
from common.errors import UserError
from common.reporting import html_charts, results

HERE = Path(__file__).parent
CLAIMS = json.loads((HERE / "claims.json").read_text("utf-8"))
MISSING = "\N{EN DASH}"
PICTURE_PX_MAX = 1400
REDRAWN = ("_curves.png", "_dose_response.png", "_dose_response_random.png", "_doctor.png")


@dataclass(frozen=True)
class Run:
    """The result of one part in one folder; `name` is the folder's path within the report's folder.

    unfinished: the names of its files are recorded, but its result was not written.
    """

    part: str
    name: str
    folder: Path
    files: list[str]
    result: dict
    provenance: dict
    unfinished: bool

    @cached_property
    def charts(self) -> list[dict]:
        drawn = html_charts.curves(self.result) + html_charts.dose_response(self.result)
        return drawn + html_charts.doctor(self.result, self.folder)

    @cached_property
    def pictures(self) -> dict[str, str]:
        """The figures as data URIs by file name, except those that the page draws as charts."""
        return {
            name: picture(self.folder / name)
            for name in self.files
            if name.endswith(".png") and not name.endswith(REDRAWN)
            if (self.folder / name).is_file()
            if name.replace(".png", "_1.png") not in self.files  # not where each picture has a file
        }

    @property
    def doses(self) -> dict | None:
        """What 1.3's sliders show: losses by shift and sigma, and copies of a picture, or None."""
        curves = self.result.get("curves") if self.part == "1.3" else None
        if not curves:
            return None
        strip = self.folder / "1.3_doses.jpg"
        return {
            "shift": curves["shift_px"],
            "noise": curves["sigma"],
            "losses": {html_charts.shown_loss(k): row for k, row in curves["weights"].items()},
            "copies": uri("jpeg", strip.read_bytes()) if strip.is_file() else None,
        }

    @property
    def badges(self) -> list[str]:
        """What a reader has to know before the numbers: other data, weights or sizes."""
        about, recipe = self.provenance, self.result.get("recipe") or {}
        width, report_width = self.result.get("width"), 1.1 if self.part[0] == "2" else 1
        badges = {
            "embedded data": "embedded" in str(about.get("data")).lower(),
            "random weights": str(about.get("weights_source")).startswith("random"),
            f"width {width}": width not in (None, report_width),
            f"images of {recipe.get('image_size_px')} px": recipe.get("image_size_px", 224) != 224,
            "some images left out": bool(about.get("left_out")),
            "uncommitted changes": str(about.get("git_commit")).endswith("+changes"),
        }
        return [badge for badge, holds in badges.items() if holds]


def picture(path: Path) -> str:
    """A picture as a WebP data URI, at most PICTURE_PX_MAX wide and four times as high."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE_PX_MAX, 4 * PICTURE_PX_MAX))
    small.save(content := io.BytesIO(), "WEBP", quality=82, method=2)
    return uri("webp", content.getvalue())


def uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def read_runs(out: Path) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs in a folder by part, the least nested ones first, and errors of unread results."""
    runs, unread = {}, []
    found = [path.parent for path in out.glob("**/results.json")]
    found = [path for path in found if "published" not in path.relative_to(out).parts]
    for folder in sorted(found, key=lambda path: (len(path.relative_to(out).parts), path)):
        try:
            stored = results.read(folder)
        except UserError as error:
            unread.append(str(error))
            continue
        name = folder.relative_to(out).as_posix()
        for part, names in stored["files"].items():
            result = dict(stored["parts"].get(part, {}))
            about = result.pop("provenance", {})
            run = Run(part, name, folder, names, result, about, part not in stored["parts"])
            runs.setdefault(part, []).append(run)
    return runs, unread


def render(out: Path) -> str:
    """The page of all runs in a folder."""
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader
    from markupsafe import Markup

    def asset(name: str) -> Markup:
        return Markup((HERE / "templates" / name).read_text("utf-8"))  # noqa: S704 ours

    def number(value, digits: int = 1) -> str:
        return f"{value:,.{digits}f}" if isinstance(value, (int, float)) else MISSING

    loader = FileSystemLoader(HERE / "templates", encoding="utf-8")
    how = {"autoescape": True, "undefined": ChainableUndefined, "trim_blocks": True}
    pages = Environment(loader=loader, lstrip_blocks=True, **how)  # noqa: S701 it is on
    pages.filters |= {"number": number, "shown": shown}
    pages.globals |= {"asset": asset, "tables": tables}
    (runs, unread), parts = read_runs(out), []
    for claim in CLAIMS:  # with the runs of its part; first the one that its values come from
        shows = claim["key"].partition(f"/{claim['part']}/")[0]
        mine = runs.get(claim["part"], ())
        parts.append((claim, sorted(mine, key=lambda run: (run.unfinished, run.name != shows))))
    return pages.get_template("report.html").render(parts=parts, unread=unread)


def write(out: Path) -> None:
    """Write report.html into a folder of results; only the first process of a job does this."""
    if not job.is_first():
        return
    with files.locked(out, "writes the report"), files.atomic(out / "report.html") as temporary:
        temporary.write_text(render(out), "utf-8", "backslashreplace")
    job.say(f"-> {out / 'report.html'}: open it in a browser")


# ----------------------------------------------------------------- the values of a result as tables


@dataclass(frozen=True)
class Table:
    """Records of one kind and their path in the result, such as ("networks", "resnet36").

    columns: the headers; the first column holds the records' names. rows: one cell per column, None
    where a record lacks the value.
    """

    path: tuple[str, ...]
    columns: list[str]
    rows: list[list]

    @property
    def is_main(self) -> bool:
        """Whether the table is at the result's top level and small enough to be read at once."""
        return len(self.path) == 1 and len(self.rows) <= 20 and len(self.columns) <= 14


def shown(value) -> str:
    """A value as text for readers: floats with three or four digits, integers with all digits."""
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(item, (list, tuple)) for item in value)
        return ("; " if nested else ", ").join(map(shown, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: MISSING, True: "yes", False: "no"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if value and not 1e-3 <= abs(value) < 1e5:
            return f"{value:,.0f}" if 1e5 <= abs(value) < 1e15 else f"{value:.3g}"
        return f"{value:.4g}"
    return job.printable(str(value))


def tables(result: Mapping) -> tuple[dict, list[Table]]:
    """All values of a nested result: plain values by dotted name, and tables of the others."""
    plain, found = {}, []
    for key, value in result.items():
        _take(key, value, (), plain, found)
    return plain, found


def _is_plain(value) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return not isinstance(value, Mapping)


def _take(name: str, value, path: tuple[str, ...], plain: dict, found: list[Table]) -> None:
    """Put a plain value into `plain` by its dotted name, and records into `found` as a table."""
    key = name.rsplit(".", 1)[-1]
    if _is_plain(value):
        plain[name] = value
    elif records := dict(_records(value)):
        found.append(_table((*path, key), records, below := []))
        found += below
    else:
        for inner, item in value.items():
            _take(f"{name}.{inner}", item, (*path, key), plain, found)


def _records(value) -> Iterator[tuple[str, Mapping]]:
    """The records of a list of dicts, by their numbers, or of a dict of at least two dicts."""
    if isinstance(value, Sequence):
        for number, item in enumerate(value, 1):
            yield str(number), item if isinstance(item, Mapping) else {"value": item}
    elif len(value) > 1 and all(isinstance(item, Mapping) for item in value.values()):
        yield from value.items()


def _table(path: tuple[str, ...], records: Mapping, below: list[Table]) -> Table:
    rows = {}
    for name, record in records.items():
        rows[name] = {}
        for key, value in record.items():
            _take(key, value, (*path, name), rows[name], below)
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    cells = [[name, *(row.get(key) for key in columns)] for name, row in rows.items()]
    return Table(path, [path[-1], *columns], cells)
