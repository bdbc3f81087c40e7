"""Pictures: at least 500 bad files, each decoded right, or named and left out; and folders."""

import os
import random
import shutil
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from common.data.sets import FileSet
from common.errors import UserError
from tests.faults import specimens, tiny
from tests.faults.harness import Call, Lost, Running, Skipped, Try, generator, run
from tests.faults.specimens import Specimen

LIMIT_S, LIMIT_BYTES = 5, 2**30
SQUARE_PX = 256


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    made = [
        Try(f"picture: {fault}", decoded, (make, how, rng.random()))
        for fault, make, how in specimens.all_specimens(quick)
    ]
    if quick:
        return made
    made += [Try("picture: no file", odd_file, (what,)) for what in ODD]
    made += [Try("picture: only a preview (DNG)", preview)]
    for _ in range(6):
        made.append(Try("folder of bad pictures, 1.1", photo_folder, (rng.random(),)))
        made.append(Try("class folders of bad pictures, 3.1", class_folder, (rng.random(),)))
    made += [Try("class folders of strips, 3.4", strips_packed)]
    made += [Try("warnings of many files", many_warnings, (part,)) for part in ("1.1", "3.1")]
    return made


# ------------------------------------------------------------------------------------ one file each


def decoded(folder: Path, make: Callable, how: tuple, seed: float) -> None:
    """A file is decoded right, or refused in a line; within 5 s and 1 GiB."""
    specimen = make(generator(seed), *how)
    (folder / "files").mkdir()
    path = folder / "files" / os.fsdecode(specimen.name)
    path.write_bytes(specimen.content)
    pixels, square = look(folder, path)
    about = f"{make.__name__}{how} of seed {seed}"
    _ask_right(pixels, specimen, about)
    if square is None and pixels is not None and min(pixels.shape[:2]) > 0:
        raise Lost(f"a square where there are pixels | {about}")
    if square is not None and square.shape != (SQUARE_PX, SQUARE_PX, 3):
        raise Lost(f"a square of {SQUARE_PX} px | {about} | {square.shape}")


def look(folder: Path, path: Path) -> list[np.ndarray | None]:
    """The pixels of a file, and its central square, as a child sees them; None where refused."""
    call = Call("problem1_perceptual", (path,), before=partial(_look, folder, path))
    seen = Running(call, folder, "look").seen(limit_s=2 * LIMIT_S + 5)
    if seen.code != 0 or seen.err:
        seen.lose(f"pixels or UserError of {path.name!r}")
    took, peak = map(float, (folder / "peak").read_text().split())
    if took > LIMIT_S or peak > LIMIT_BYTES:
        seen.lose(f"under {LIMIT_S} s and 1 GiB, not {took:.1f} s and {peak / 2**20:.0f} MiB")
    found: list[np.ndarray | None] = []
    for name in LOOKS:
        found.append(np.load(folder / f"{name}.npy") if (folder / f"{name}.npy").exists() else None)
        message = (folder / f"{name}.refused").read_text() if found[-1] is None else "a.png"
        if "\n" in message or (path.name == "a.png" and "a.png" not in message):
            raise Lost(f"one line that names the file | {message!r}")
    return found


LOOKS = {
    "whole": lambda path: _source(path).picture(0),
    "square": lambda path: _source(path).square(0, SQUARE_PX),
}


def _source(path: Path) -> FileSet:
    return FileSet("a file", [path], [0], ["a class"])


def _look(folder: Path, path: Path) -> None:
    """In the child: never returns."""
    before, took = _memory("VmRSS"), []
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    for name, load in LOOKS.items():
        start = time.perf_counter()
        try:
            np.save(folder / f"{name}.npy", load(path))
        except UserError as error:
            (folder / f"{name}.refused").write_text(str(error))
        took.append(time.perf_counter() - start)
    (folder / "peak").write_text(f"{max(took)} {_memory('VmHWM') - before}")
    sys.exit(0)


def _memory(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise Skipped("no /proc/self/status")


def _ask_right(pixels: np.ndarray | None, specimen: Specimen, about: str) -> None:
    if pixels is None:
        if specimen.must_decode:
            raise Lost(f"decoded, not refused | {about}")
        return
    if specimen.must_refuse:
        raise Lost(f"refused, not decoded | {about} | {pixels.shape}")
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise Lost(f"uint8 (height, width, 3) | {about} | {pixels.dtype} {pixels.shape}")
    if specimen.right is None:
        return
    ways = specimens.TURNED.values() if specimen.turned else [specimens.TURNED[1]]
    for turn in ways:
        right = turn(specimen.right)
        if right.shape == pixels.shape:
            worst = np.abs(right.astype(int) - pixels).max()
            if worst <= specimen.tolerance:
                return
    raise Lost(
        f"the right pixels | {about} | shape {pixels.shape}, differ from {specimen.right.shape}"
    )


# ------------------------------------------------------------------------------ files that are none

ODD = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to an endless device": lambda path: path.symlink_to("/dev/zero"),
    "missing": lambda path: path,
}


def odd_file(folder: Path, what: str) -> None:
    """Something that is no file: refused, and --image of Problem 1 too."""
    path = folder / "a.png"
    ODD[what](path)
    if look(folder, path) != [None, None]:
        raise Lost(f"refused | {what}")
    call = Call("problem1_perceptual", ("1.1", "--image", path, "--out", "out"))
    run(call, folder, limit_s=15).refuses("a.png")


def preview(folder: Path) -> None:
    """A DNG of which Pillow reads the small preview: refused."""
    try:
        from tifffile import TiffWriter
    except ImportError:
        raise Skipped("the package tifffile is not installed") from None
    path = folder / "a.dng"
    with TiffWriter(path) as tiff:
        options = {"photometric": "rgb"}
        tiff.write(tiny.picture(0, 128, 96), subfiletype=1, subifds=1, **options)
        tiff.write(tiny.picture(0, 640, 480), subfiletype=0, **options)
    shutil.copyfile(path, folder / "b.tif")
    for name in ("a.dng", "b.tif"):
        call = Call("problem1_perceptual", ("1.1", "--image", name, "--out", "out"))
        run(call, folder).refuses(name)


# ------------------------------------------------------------------------------------ whole folders


def _write_some(place: Path, rng: random.Random, count: int) -> None:
    """Specimens in a folder, by unusual names."""
    made = list(specimens.all_specimens(False))
    for number, (_, make, how) in enumerate(rng.sample(made, count)):
        specimen = make(rng, *how)
        stem, ending = os.path.splitext(specimen.name)
        stem = rng.choice((stem, rng.choice(specimens.NAMES)))[:100]
        (place / os.fsdecode(b"%s%d%s" % (stem, number, ending))).write_bytes(specimen.content)


def photo_folder(folder: Path, seed: float) -> None:
    """Problem 1 on a folder of good and bad photos: measured, the bad left out by name."""
    rng = generator(seed)
    _write_some(tiny.write_photos(folder / "photos"), rng, 25)
    for path in (folder / "photos").iterdir():  # strips are refused for their size, rightly
        if path.stat().st_size and path.suffix == ".png" and _is_strip(path):
            path.unlink()
    call = Call("problem1_perceptual", ("1.1", *tiny.PHOTOS))
    seen = run(call, folder).ends_well()
    if seen.code == 0 and len(seen.err.splitlines()) > 5:
        seen.lose("few lines on stderr")


def _is_strip(path: Path) -> bool:
    header = path.read_bytes()[16:24]
    return min(int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) < 16


def class_folder(folder: Path, seed: float) -> None:
    """Problem 3 on class folders of good and bad images: drawn, the bad left out by name."""
    rng = generator(seed)
    tiny.write_classes(folder / "classes", ("ants", "bees", "US$5_note_$"), images=8)
    for place in (folder / "classes").iterdir():
        _write_some(place, rng, 8)
    flags = ("--data", "classes", "--per-class", 6, "--image-size", 32, "--out", "out")
    seen = run(Call("problem3_resnet36", ("3.1", *flags, "--cache", "cache")), folder).completes()
    if len(seen.err.splitlines()) > 5:
        seen.lose("few lines on stderr")


def strips_packed(folder: Path) -> None:
    """Problem 3 trains on strips, which are cropped before they are scaled."""
    for number, name in enumerate(("ants", "bees")):
        place = folder / "classes" / name
        place.mkdir(parents=True)
        for image in range(4):
            content = specimens.strip(generator(10 * number + image), "PNG", 4000, 1).content
            (place / f"{image}.png").write_bytes(content)
    flags = [word if word != "synthetic" else "classes" for word in tiny.FOLDERS]
    flags[flags.index("--classes") + 1], flags[flags.index("--per-class") + 1] = 2, 4
    argv = ("3.4", "--diagnose", *flags, "--batch-size", 4, "--steps", 2)
    call = Call("problem3_resnet36", argv, memory_bytes=4 * 2**30)
    run(call, folder).completes()


def many_warnings(folder: Path, part: str) -> None:
    """Thirty JPEG files with a damaged tag: at most one line on stderr."""
    tags = (
        b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHLL", 0x10F, 2, 2555904, 65535) + bytes(4)
    )
    for number in range(30):
        place = (
            folder
            / "photos"
            / ("ants" if number % 2 and part == "3.1" else "bees" * (part == "3.1"))
        )
        place.mkdir(parents=True, exist_ok=True)
        image = specimens.Image.fromarray(tiny.picture(number))
        (place / f"{number}.jpg").write_bytes(specimens.encoded(image, "JPEG", exif=tags))
    call = Call("problem1_perceptual", ("1.1", *tiny.PHOTOS))
    if part == "3.1":
        flags = ("--data", "photos", "--per-class", 10, "--image-size", 32, "--out", "out")
        call = Call("problem3_resnet36", ("3.1", *flags))
    seen = run(call, folder).completes()
    if len(seen.err.splitlines()) > 1:
        seen.lose("at most one line on stderr")
