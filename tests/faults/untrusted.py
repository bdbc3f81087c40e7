"""Untrusted input: code in files, rows and links that lead elsewhere, markup in names."""

import csv
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import files
from common.reporting import page
from tests.faults import damage, tiny
from tests.faults.harness import Call, Lost, Seen, Try, run
from tests.faults.reference import CALLS, reference

WAYS = ("os.system", "exec", "eval", "open")
CANARY = "canary"  # the file that code in a file would write, where it ran


class Runs:
    """Pickled, it is code that writes the canary."""

    def __init__(self, way: str):
        self.way = way

    def __reduce__(self):
        line = f"open({CANARY!r}, 'w').close()"
        ways: dict[str, tuple[Callable, tuple]] = {
            "os.system": (os.system, (f"touch {CANARY}",)),
            "exec": (exec, (line,)),
            "eval": (eval, (f"__import__('os').system('touch {CANARY}')",)),
            "open": (open, (CANARY, "w")),
        }
        return ways[self.way]


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    del rng
    if quick:
        return [
            Try("code in last.pt", code_in_run, ("last.pt", "exec", "alone")),
            Try("code in --weights", code_in_flag, ("--weights", "eval", "alone")),
        ]
    made = [Try("code in images.npy", code_in_cache, (way,)) for way in WAYS]
    for number, shape in enumerate([*SHAPES] * 2):
        way = WAYS[number % len(WAYS)]
        for name in ("last.pt", "best.pt"):
            made.append(Try(f"code in {name}", code_in_run, (name, way, shape)))
        for flag in FLAGS:
            made.append(Try(f"code in {flag}", code_in_flag, (flag, way, shape)))
    made += [Try("hostile results.json", hostile_results, (what,)) for what in RESULTS]
    made += [Try("row of a manifest", hostile_row, (what,)) for what in ROWS]
    made += [Try("class and file names", hostile_names, (part,)) for part in ("1.1", "3.1", "3.4")]
    made += [Try("names on the page", names_on_page)]
    made += [Try("link out of the folder", link, (what,)) for what in LINKS]
    return made


# ---------------------------------------------------------------------------------- code in a file

SHAPES = {
    "alone": lambda code: code,
    "in a state dict": lambda code: {"network": {"a": torch.zeros(2), "b": code}},
    "in identity": lambda code: {"network": {"a": torch.zeros(2)}, "about": code},
    "pickle": None,
    "legacy": None,
}
FLAGS = {
    "--init": ("problem2_flowers", ("2.2", *tiny.TRAINED)),
    "--from-narrow": ("problem2_flowers", ("2.3", *tiny.TRAINED)),
    "--weights": ("problem1_perceptual", ("1.2", *tiny.PHOTOS)),
}


def _write_code(path: Path, way: str, shape: str) -> None:
    code = Runs(way)
    if shape == "pickle":
        path.write_bytes(pickle.dumps({"a": code}))
    elif shape == "legacy":
        torch.save({"a": code}, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(SHAPES[shape](code), path)


def _ask_unrun(folder: Path, seen: Seen) -> None:
    if (folder / CANARY).exists():
        seen.lose("no code run")


def code_in_run(folder: Path, name: str, way: str, shape: str) -> None:
    """Code in a checkpoint of a run, its SHA-256 recorded: refused by name, not run."""
    _, _, base = reference(CALLS["2.2"])
    shutil.copytree(base / "out", folder / "out")
    path = next(folder.glob(damage.RUN + name))
    _write_code(path, way, shape)
    files.record(path)
    seen = run(CALLS["2.2"], folder)
    _ask_unrun(folder, seen)
    seen.refuses(name)


def code_in_flag(folder: Path, flag: str, way: str, shape: str) -> None:
    """Code in a file of weights: refused by name, not run."""
    tiny.write_photos(folder / "photos")
    script, words = FLAGS[flag]
    for name in ("weights.pt", "vgg16.ckpt", "weights.safetensors"):
        _write_code(folder / name, way, shape)
        seen = run(Call(script, (*words, flag, name)), folder)
        _ask_unrun(folder, seen)
        seen.refuses(name)


def code_in_cache(folder: Path, way: str) -> None:
    """Code in an array of the packed cache, its SHA-256 recorded: not run; refused, or remade."""
    _, _, base = reference(CALLS["2.2"])
    shutil.copytree(base / "cache", folder / "cache")
    for path in folder.glob("cache/*/images.npy"):
        np.save(path, np.array([Runs(way)] * 12, dtype=object), allow_pickle=True)
        files.record(path)
    seen = run(CALLS["2.2"], folder)
    _ask_unrun(folder, seen)
    seen.ends_well()


# ------------------------------------------------------------------------- results and manifests

RESULTS = {
    "a file outside": '{"files": {"2.1": ["../victim"]}, "parts": {}}',
    "an absolute file": '{"files": {"2.1": ["VICTIM"]}, "parts": {}}',
    "results.json itself": '{"files": {"2.1": ["results.json"]}, "parts": {}}',
    "..": '{"files": {"2.1": [".."]}, "parts": {}}',
    "a number": '{"files": {"2.1": [3]}, "parts": {}}',
    "deep": "[" * 100_000,
    "deep in parts": '{"files": {}, "parts": {"2.1": ' + "[" * 100_000 + "}}",
    "a large number": '{"files": {}, "parts": {"2.1": {"a": ' + "9" * 5000 + "}}}",
    "not UTF-8": "\udcff",
}


def hostile_results(folder: Path, what: str) -> None:
    """A results.json that names other files as its own: refused; nothing else is removed."""
    victim, place = folder / "out/victim", folder / "out/problem2"
    place.mkdir(parents=True)
    victim.write_text("mine")
    path = place / "results.json"
    text = RESULTS[what].replace("VICTIM", str(victim))
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    files.record(path)
    seen = run(CALLS["2.1 2.2"], folder)
    if not victim.exists() or victim.read_text() != "mine":
        seen.lose("a file that is not its own left alone")
    seen.refuses("results.json")


ROWS = {
    "an absolute path": {"path": "/etc/passwd"},
    "a path with ..": {"path": "ants/../../../etc/passwd"},
    "a path of ..": {"path": "../x.png", "class_id": ".."},
    "an absolute class": {"path": "/etc/passwd", "class_id": "/etc"},
    "an empty path": {"path": ""},
    "a path with NUL": {"path": "ants/a\0b.png"},
    "a width of words": {"width": "x"},
    "a size of 10^5000": {"bytes": "9" * 5000},
    "an unknown split": {"split": "../train"},
    "a long class name": {"class_name": "x" * 200_000},
}


def hostile_row(folder: Path, what: str) -> None:
    """A manifest, its SHA-256 recorded, with a row that leads elsewhere: refused by name."""
    call, path = damage.by_manifest(folder)
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    rows[0] |= ROWS[what]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[1]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue())
    files.record(path)
    run(call, folder).refuses("3.1_manifest.csv")


# ------------------------------------------------------------------------------------------- names

CLASS_NAMES = (
    *("<script>alert(1)<", "<img src=x onerror=alert(1)>", "$(touch canary)", "`touch canary`"),
    *(
        "US$5_note_$",
        "..x",
        "a\nb",
        "\x1b[31mred",
        "\u202egnp",
        "猫",
        "%s{x}",
        "-rf",
        "a|b",
        "\udcff",
    ),
)


def hostile_names(folder: Path, part: str) -> None:
    """Names of markup, of a shell, of a terminal: shown as text, nothing written elsewhere."""
    if part == "1.1":
        photos = tiny.write_photos(folder / "photos")
        for number, name in enumerate(CLASS_NAMES):
            shutil.copyfile(photos / f"photo{number % 3}.png", photos / f"{name}.png")
        call = Call("problem1_perceptual", ("1.1", *tiny.PHOTOS))
    else:
        names = tuple(name for name in CLASS_NAMES if not name.startswith("."))
        tiny.write_classes(folder / "classes", names, images=3)
        flags = [word if word != "synthetic" else "classes" for word in tiny.FOLDERS]
        flags[flags.index("--classes") + 1], flags[flags.index("--per-class") + 1] = len(names), 3
        more = (
            ("--batch-size", 12, "--steps", 2, "--epochs", 1, "--lr", 1e-5) if part == "3.4" else ()
        )
        call = Call("problem3_resnet36", (part, *flags, *more))
    before = {path.name for path in folder.iterdir()}
    seen = run(call, folder, limit_s=60).completes()
    _ask_unrun(folder, seen)
    if "\x1b" in seen.out + seen.err or "\u202e" in seen.out + seen.err:
        seen.lose("no control characters on the terminal")
    new = (
        {path.name for path in folder.iterdir()} - before - {"out", "cache", "call.out", "call.err"}
    )
    if new:
        seen.lose(f"no other files, not {new}")
    text = next((folder / "out").rglob("results.json")).read_bytes()
    json.loads(text)
    if len(seen.err.splitlines()) > 1:
        seen.lose("one line on stderr at most")


def names_on_page(folder: Path) -> None:
    """Names on the page: no markup of theirs is left."""
    del folder
    for name in CLASS_NAMES:
        shown = page.fill("a name: {part/name}", {"part": {"name": name}})
        rest = shown.removeprefix("a name: ")
        if any(mark in rest for mark in "<>`|[]*\n\x1b\u202e"):
            raise Lost(f"text without markup | page.fill of {name!r} | {shown!r}")


# ------------------------------------------------------------------------------------------- links

LINKS = ("figure", "results.json", "run folder", "cache leftover", "class folder", "image", "photo")


def link(folder: Path, what: str) -> None:
    """A link that leads out of the folder: what it leads to is never written or removed."""
    victim = folder / "victim"
    tiny.write_classes(victim, ("kept",), 4)
    (victim / "file").write_text("mine")
    before = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    tiny.write_photos(folder / "photos")
    tiny.write_classes(folder / "classes")
    for place in ("out/problem1", "out/problem2", "cache"):
        (folder / place).mkdir(parents=True)
    where = {
        "figure": "out/problem1/1.1_shift.png",
        "results.json": "out/problem1/results.json",
        "run folder": "out/problem2/runs",
        "cache leftover": "cache/.unfinished-folder-x",
        "class folder": "classes/linked",
        "image": "classes/ants/linked.png",
        "photo": "photos/linked.png",
    }[what]
    target = victim if what in ("run folder", "cache leftover", "class folder") else victim / "file"
    (folder / where).symlink_to(target)
    calls = {"out/problem1": Call("problem1_perceptual", ("1.1", *tiny.PHOTOS))}
    calls |= {"photos": calls["out/problem1"], "out/problem2": CALLS["2.2"], "cache": CALLS["2.2"]}
    drawing = ("3.1", "--data", "classes", "--per-class", 3, "--image-size", 32, "--out", "out")
    calls["classes"] = Call("problem3_resnet36", drawing)
    call = next(call for place, call in calls.items() if where.startswith(place))
    seen = run(replace(call), folder).ends_well()
    after = {path: path.read_bytes() for path in before if path.exists()}
    if before != after:
        seen.lose("what the link leads to left as it was")
