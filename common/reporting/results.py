"""results.json: what each part found, which files it wrote, and where both came from.

It does not load PyTorch, which would take the report page five seconds.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import files, job
from common.errors import UserError

MOVE_AWAY = "move it away with the tables and figures beside it, and run again"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Findings:
    """What a part found, and the files that show it, by their names in the folder.

    result: plain values for results.json. tables: texts to print and save. texts: texts or bytes to
    save only; a manifest.csv among them is read again later, so SHA256SUMS records it.
    figures: functions that draw a figure into a given path.
    """

    result: dict
    tables: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str | bytes] = field(default_factory=dict)
    figures: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)


def open_folder(folder: Path, parts: Sequence[str] = ()) -> Path:
    """A problem's results folder for these parts, made if it is missing.

    Without a results.json, files that are named like a part's are a UserError before any work.
    """
    files.make_folder(folder)
    read(folder)
    if not (folder / "results.json").exists():
        _refuse(folder, [path.name for part in parts for path in folder.glob(f"{part}_*.*")])
    return folder


def _refuse(folder: Path, names: Iterable[str]) -> None:
    if names := sorted(names):
        raise UserError(
            f"{folder}: {', '.join(names)} in the way, which results.json does not record as"
            " written by this part; move these away, or choose another --out"
        )


def read(folder: Path) -> dict:
    """{"files": {part: names}, "parts": {part: result}} of a folder; empty without results.json."""
    path = folder / "results.json"
    if not path.exists():
        return {"files": {}, "parts": {}}
    try:
        stored = files.load_json(path)
    except UserError as error:
        raise UserError(f"{error}; {MOVE_AWAY}") from None
    # A part that runs again removes the files listed here: none may lie outside the folder.
    if any(Path(name).name != name for names in stored["files"].values() for name in names):
        raise UserError(f"{path} is not a results file of this project; {MOVE_AWAY}")
    return stored


def publish(folder: Path, part: str, findings: Findings, provenance: dict) -> None:
    """Print and write what a part found; only the first process of a job does this.

    This replaces the part's entry in results.json and the files that the entry lists. Any other
    file in the way is a UserError. A second call at the same time waits for the first.
    """
    if not job.is_first():
        return
    for text in findings.tables.values():
        job.say(text)
    names = sorted([*findings.tables, *findings.texts, *findings.figures])
    with files.locked(folder, "writes results"):
        stored = read(folder)
        before = set(stored["files"].get(part, []))
        _refuse(folder, [name for name in set(names) - before if os.path.lexists(folder / name)])
        # Record the names first: after a kill while writing, the next run may replace the files.
        stored["files"][part] = sorted(before.union(names))
        _store(folder, stored)
        _write(folder, findings)
        for name in sorted(before.difference(names)):
            (folder / name).unlink(missing_ok=True)
            job.say(f"removed {folder / name}, of the part's run before")
        stored["files"][part] = names
        stored["parts"][part] = {**findings.result, "provenance": provenance}
        _store(folder, stored)
    job.say(f"-> {folder / 'results.json'} [{part}] in {provenance['call_seconds']:.1f} s")


def _write(folder: Path, findings: Findings) -> None:
    for name, text in {**findings.tables, **findings.texts}.items():
        content = text.encode("utf-8", "backslashreplace") if isinstance(text, str) else text
        if name.endswith("manifest.csv"):
            files.save(folder / name, content)
            continue
        with files.atomic(folder / name) as temporary:
            temporary.write_bytes(content)
    for name, draw in findings.figures.items():
        with files.atomic(folder / name) as temporary:
            draw(temporary)


def _store(folder: Path, stored: dict) -> None:
    stored = {key: dict(sorted(entries.items())) for key, entries in stored.items()}
    files.save_json(folder / "results.json", stored)
