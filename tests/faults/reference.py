"""Uninterrupted runs, made once a campaign, that others have to end equal to."""

import tempfile
from pathlib import Path

from filelock import FileLock

from tests.faults import equal, tiny
from tests.faults.harness import Call, Running, ranks

DOCTOR = ("--steps", 2, "--epochs", 1, "--checkpoint-seconds", 0)
CALLS = {
    "2.2": Call("problem2_flowers", ("2.2", *tiny.TRAINED)),
    "2.1 2.2": Call("problem2_flowers", ("2.1", "2.2", *tiny.TRAINED)),
    "2.1 2.3 2.6": Call(
        "problem2_flowers",
        ("2.1", "2.3", "2.6", "--layer", tiny.LAYER, "--pointing-images", 4, *tiny.TRAINED),
    ),
    "3.1": Call("problem3_resnet36", ("3.1", *tiny.FOLDERS)),
    "3.1 3.2": Call("problem3_resnet36", ("3.1", "3.2", *tiny.FOLDERS)),
    "3.1 3.4": Call("problem3_resnet36", ("3.1", "3.4", *tiny.FOLDERS, *DOCTOR)),
    "1.1 to 1.3": Call("problem1_perceptual", tiny.PHOTOS),
}


def reference(call: Call, processes: int = 1) -> tuple[dict, float, Path]:
    """An uninterrupted run of a call: its digest, its seconds and its folder."""
    name = f"{hash((call.script, call.argv, processes, call.threads)):x}"
    folder = Path(tempfile.gettempdir()) / f"reference{name}"
    with FileLock(f"{folder}.lock"):
        if not (folder / "seconds").exists():
            folder.mkdir(exist_ok=True)
            if not (folder / "photos").exists():
                tiny.write_photos(folder / "photos")
            started = ranks(call, folder, processes) if processes > 1 else [Running(call, folder)]
            seen = [process.seen().completes() for process in started]
            (folder / "seconds").write_text(str(seen[0].seconds))
    seconds = float((folder / "seconds").read_text())
    return equal.digest(folder / "out"), seconds, folder


def goes_on(call: Call, folder: Path, wanted: dict, processes: int = 1, logs=None) -> None:
    """Ask that the same command ends as an uninterrupted one, and leaves nothing behind."""
    if processes == 1:
        started = [Running(call, folder, "again", logs)]
    else:
        started = ranks(call, folder, processes, "again")
    for process in started:
        process.seen().completes()
    equal.ask(wanted, equal.digest(folder / "out"), call.text)
    equal.ask_tidy(*(folder / name for name in ("out", "cache") if (folder / name).exists()))
