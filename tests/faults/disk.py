"""Disks: full, read-only, and folders that vanish in the middle of a run."""

import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.reporting.results import ROOT
from tests.faults import equal, tiny
from tests.faults.harness import Call, Running, Seen, Skipped, Try, run, tmpfs
from tests.faults.kill import slow_steps
from tests.faults.reference import CALLS, goes_on, reference

NOBODY = 65534
MEGABYTES = 48
CHANGING = ("results.json", "SHA256SUMS")  # files that a later part rightly changes


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    if quick:
        how = ("3.1 3.2", "3.2", rng.random())
        return [
            Try("folder read-only", read_only, ("3.1", "out")),
            Try("disk full, 3.1", full, how),
        ]
    made = [Try("folder read-only", read_only, ("2.1 2.2", "out"))]
    for name, first, count in (
        ("2.1 2.2", "2.1", 12),
        ("3.1 3.4", "3.1", 8),
        ("1.1 to 1.3", "1.1", 6),
    ):
        for number in range(count):  # spread over the run, as what is free decides when it ends
            place = (number + rng.random()) / count
            made.append(Try(f"disk full, {name}", full, (name, first, place)))
    made += [Try("folder read-only", read_only, ("2.1 2.2", "cache"))]
    made += [Try("folder read-only", read_only, ("3.1 3.4", "out"))]
    made += [Try("folder read-only", read_only, ("3.1 3.4", "cache"))]
    made += [Try("folder read-only", read_only, ("1.1 to 1.3", "out"))]
    made += [Try("file not readable", unreadable)]
    for gone in ("cache", "out"):
        for name, count in (("2.1 2.2", 3), ("3.1 3.4", 3)):
            for _ in range(count):
                made.append(Try(f"{gone} removed in mid-run", removed, (name, gone, rng.random())))
        made.append(Try(f"{gone} removed in mid-run", removed_in_training, (gone,)))
    return made


def _first_part(call: Call, part: str) -> Call:
    parts = [word for word in call.argv if str(word)[:2] not in ("1.", "2.", "3.")]
    return replace(call, argv=(part, *parts))


def _bytes_used(folder: Path) -> int:
    return sum(path.lstat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _ask_kept(before: dict[str, bytes], folder: Path, seen: Seen) -> None:
    """Ask that what was there is as it was; the part's record still in results.json."""
    after = equal.content(folder)
    changed = [name for name, data in before.items() if after.get(name) != data]
    changed = [name for name in changed if Path(name).name not in CHANGING]
    if changed:
        seen.lose(f"files of before intact, not changed: {changed[:3]}")


def full(folder: Path, name: str, first: str, fraction: float) -> None:
    """A small file system on which a fraction of what the run needs is free; then all of it."""
    call = CALLS[name]
    wanted, _, base = reference(call)
    logs = folder
    with tmpfs(folder / "disk", MEGABYTES) as disk:
        tiny.write_photos(disk / "photos")
        run(_first_part(call, first), disk, "first", logs).completes()
        before = equal.content(disk / "out")
        needed = sum(
            _bytes_used(base / each) for each in ("out", "cache") if (base / each).exists()
        )
        free = fraction * max(0, needed - _bytes_used(disk / "out"))
        _fill(disk / "filler", int(free))
        seen = run(call, disk, "full", logs)
        if seen.code != 0:
            line = seen.refuses().err
            if "out/" not in line and "cache" not in line:
                seen.lose("a line that names the file or folder")
            _ask_kept(before, disk / "out", seen)
        (disk / "filler").unlink()
        goes_on(call, disk, wanted, logs=logs)


def _fill(path: Path, free: int) -> None:
    """Fill a file system by one file, and leave so many bytes free."""
    size = 0
    with path.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                size += file.write(b"\0" * 65536)
        file.truncate(max(0, size - free))


def _as_nobody(call: Call, folder: Path) -> Call:
    """The call as a user whom permissions bind, whom the try's folder lets in."""
    folder.chmod(0o777)
    if os.geteuid():
        return call
    for place in (ROOT, Path(sys.prefix)):
        if not all(parent.stat().st_mode & 0o005 == 0o005 for parent in (place, *place.parents)):
            raise Skipped(f"another user may not read {place.name}/, and permissions bind no root")
    return replace(call, uid=NOBODY)


def read_only(folder: Path, name: str, place: str) -> None:
    """A folder that may not be written to, files of before in it; then it may."""
    call = CALLS[name]
    wanted, _, base = reference(call)
    tiny.write_photos(folder / "photos")
    for each in ("out", "cache"):
        (folder / each).mkdir()
        (folder / each).chmod(0o777)
    if place == "out":
        shutil.copytree(base / "out", folder / "out", dirs_exist_ok=True)
    _chmod(folder / place, 0o555, 0o444)
    before = equal.content(folder / "out")
    seen = run(_as_nobody(call, folder), folder)
    if not (place == "cache" and seen.code == 0 and call.script.startswith("problem1")):
        seen.refuses(place)
    _ask_kept(before, folder / "out", seen)
    for each in ("out", "cache"):
        _chmod(folder / each, 0o777, 0o666)
    goes_on(_as_nobody(call, folder), folder, wanted)


def _chmod(folder: Path, of_folders: int, of_files: int) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(of_folders if path.is_dir() else of_files)


def unreadable(folder: Path) -> None:
    """A photo that may not be read: left out by name, the others are measured."""
    tiny.write_photos(folder / "photos")
    (folder / "photos" / "photo1.png").chmod(0)
    call = Call("problem1_perceptual", ("1.1", *tiny.PHOTOS))
    seen = run(_as_nobody(call, folder), folder).completes()
    if "photo1.png" not in seen.err:
        seen.lose("a line that names photo1.png")


def removed(folder: Path, name: str, gone: str, fraction: float) -> None:
    """A folder removed at a fraction of the run's time."""
    _remove(folder, name, gone, lambda process, seconds: process.sleep(fraction * seconds))


def removed_in_training(folder: Path, gone: str) -> None:
    """A folder removed during a step."""
    marker = folder / "training"
    _remove(folder, "2.1 2.2", gone, lambda process, _: process.wait_for(marker), marker)


def _remove(
    folder: Path, name: str, gone: str, wait: Callable[[Running, float], object], marker=None
) -> None:
    call = CALLS[name]
    wanted, seconds, _ = reference(call)
    before = partial(slow_steps, marker) if marker else None
    process = Running(replace(call, before=before), folder)
    wait(process, seconds)
    time.sleep(0.02)
    shutil.rmtree(folder / gone, ignore_errors=True)
    seen = process.seen()
    if seen.code != 0 and gone not in seen.refuses().err:
        seen.lose(f"a line that names {gone}")
    process.leaves_no_process()
    goes_on(call, folder, wanted)
