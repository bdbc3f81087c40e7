"""The report as one page: report.html beside the results, without a network, for any browser.

    html.write(Path("outputs"))      made from outputs/**/results.json and claims.json

Pictures are those that the runs have left in their folders. The words are in templates/report.html
and findings.html, beside the page's styles and script; uPlot draws its curves.
"""

import base64
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common import files, job
from common.errors import UserError
from common.reporting import html_charts, results
from common.reporting.html_tables import MISSING, Table, shown, tables

HERE = Path(__file__).parent
SCRIPTS = {"1": "problem1_perceptual.py", "2": "problem2_flowers.py", "3": "problem3_resnet36.py"}
TITLES = {
    "1": "Problem 1: losses under a shift and under noise",
    "2": "Problem 2: EfficientNetV2-S on Oxford Flowers-102",
    "3": "Problem 3: ResNet-36 and its activation",
}
NEEDS_DATA = ("3.1", "3.4")
PICTURE_PX_MAX = 1400
REDRAWN = ("_curves.png", "_dose_response.png", "_dose_response_random.png", "_doctor.png")


@dataclass(frozen=True)
class Run:
    """A part's result in one folder.

    name: the folder's, in the report's. unfinished: its files were announced, its result was not
    written. result: without the provenance.
    """

    part: str
    name: str
    folder: Path
    files: list[str]
    result: dict
    provenance: dict
    unfinished: bool = False

    @cached_property
    def charts(self) -> list[dict]:
        """Its interactive figures."""
        drawn = html_charts.curves(self.result) + html_charts.dose_response(self.result)
        return drawn + html_charts.doctor(self.result, self.folder)

    @property
    def tables(self) -> tuple[dict, list[Table]]:
        """Its plain values, and all others in tables."""
        return tables(self.result)

    @cached_property
    def pictures(self) -> dict[str, str]:
        """Its figures by file name as data URIs, those aside that are drawn anew."""
        shown_again = REDRAWN if self.charts else ()
        return {
            name: picture(self.folder / name)
            for name in self.files
            if name.endswith(".png") and not name.endswith(shown_again)
            if (self.folder / name).is_file()
            if name.replace(".png", "_1.png") not in self.files  # its pictures stand alone too
        }

    @property
    def doses(self) -> dict | None:
        """What 1.3's sliders show: losses at each shift and sigma, and the picture's copies."""
        curves = self.result.get("curves") if self.part == "1.3" else None
        if not curves:
            return None
        losses = {
            html_charts.shown_loss(loss): {
                treatment: [
                    dict(zip(("relative", "low", "high"), dose, strict=True))
                    for dose in zip(*(curve[treatment][key] for key in ("relative", "low", "high")),
                                    strict=True)
                ]
                for treatment in ("shift", "noise")
            }
            for loss, curve in curves["weights"].items()
        }  # fmt: skip
        strip = self.folder / "1.3_doses.jpg"
        copies = uri("jpeg", strip.read_bytes()) if strip.is_file() else None
        doses = {"shift": curves["shift_px"], "noise": curves["sigma"]}
        return {**doses, "losses": losses, "copies": copies}

    @property
    def badges(self) -> list[str]:
        """What a reader has to know before the numbers: other data, weights or sizes."""
        about, recipe = self.provenance, self.result.get("recipe") or {}
        width, report_width = self.result.get("width"), 1.1 if self.part[0] == "2" else 1
        told = {
            "embedded data": "embedded" in str(about.get("data")).lower(),
            "random weights": str(about.get("weights_source")).startswith("random"),
            f"width {width}": width not in (None, report_width),
            f"images of {recipe.get('image_size_px')} px": recipe.get("image_size_px", 224) != 224,
            "some images left out": bool(about.get("left_out")),
            "uncommitted changes": str(about.get("git_commit")).endswith("+changes"),
        }
        return [badge for badge, holds in told.items() if holds]


def picture(path: Path) -> str:
    """A picture as a data URI, WebP of PICTURE_PX_MAX at most."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE_PX_MAX, 4 * PICTURE_PX_MAX))
    small.save(content := io.BytesIO(), "WEBP", quality=82, method=2)
    return uri("webp", content.getvalue())


def uri(kind: str, content: bytes) -> str:
    """A picture's bytes as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def read_runs(out: Path) -> tuple[dict[str, list[Run]], list[str]]:
    """All runs in a folder by part, the problem's own folder first, and what could not be read."""
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


def chapters(runs: dict[str, list[Run]]) -> dict[str, list[dict]]:
    """The report's parts under the titles of their problems: claim, runs and command of each."""
    told = {title: [] for title in TITLES.values()}
    for claim in json.loads((HERE / "claims.json").read_text("utf-8")):
        part = claim["part"]
        shows = claim["key"].partition(f"/{part}/")[0]
        mine = sorted(runs.get(part, ()), key=lambda run: (run.unfinished, run.name != shows))
        command = f"python {SCRIPTS[part[0]]} {part}" + " --data DIR" * (part in NEEDS_DATA)
        told[TITLES[part[0]]].append({"claim": claim, "runs": mine, "command": command})
    return told


def number(value, digits: int = 1) -> str:
    """A number with so many digits after the point; what is not there is a dash."""
    return f"{value:,.{digits}f}" if isinstance(value, (int, float)) else MISSING


def render(out: Path) -> str:
    """The page of all runs in a folder."""
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader
    from markupsafe import Markup

    def asset(name: str) -> Markup:
        return Markup((HERE / "templates" / name).read_text("utf-8"))  # noqa: S704 ours

    loader = FileSystemLoader(HERE / "templates", encoding="utf-8")
    how = {"autoescape": True, "undefined": ChainableUndefined, "trim_blocks": True}
    pages = Environment(loader=loader, lstrip_blocks=True, **how)  # noqa: S701 it is on
    pages.filters |= {"number": number, "shown": shown}
    pages.globals["asset"] = asset
    runs, unread = read_runs(out)
    told = {"chapters": chapters(runs), "unread": unread}
    return pages.get_template("report.html").render(told)


def write(out: Path) -> None:
    """Write report.html into a folder of results, on the first process of a job alone."""
    if not job.is_first():
        return
    with files.locked(out, "writes the report"), files.atomic(out / "report.html") as temporary:
        temporary.write_text(render(out), "utf-8", "backslashreplace")
    job.say(f"-> {out / 'report.html'}: open it in a browser")
