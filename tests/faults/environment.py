"""Environments: of a job without the job, of a notebook, of a bare machine."""

import itertools
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

from PIL import Image

from common.reporting.results import ROOT
from tests.faults import tiny
from tests.faults.flags import stop_when_prepared
from tests.faults.harness import SCRIPTS, Call, Lost, Running, Try, program, run
from tests.faults.kill import wait_less
from tests.faults.reference import CALLS, reference

JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")
VALUES = {
    "RANK": (None, "", "x", "1"),
    "WORLD_SIZE": (None, "", "two", "2"),
    "LOCAL_RANK": (None, "", "1.5", "0"),
    "MASTER_ADDR": (None, "", "no such host", "127.0.0.1"),
}
END_S = 20  # until a try is given up
ASCII_ALONE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
FIRST = {
    "1.1": Call("problem1_perceptual", ("1.1", *tiny.PHOTOS)),
    "2.1": Call("problem2_flowers", ("2.1", *tiny.FLOWERS)),
}


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    subsets = list(itertools.product(*VALUES.values()))
    if quick:
        few = [subsets[64 * number] for number in (1, 2, 3)]
        return [Try("RANK and its like", job_without_job, ("1.1", values, True)) for values in few]
    made = []
    for number, values in enumerate(subsets):  # every one for one of the scripts
        place = (("1.1", "2.1")[number % 2], values, number % 16 < 2)
        made.append(Try("RANK and its like", job_without_job, place))
    odd = ({"RANK": "-1"}, {"RANK": "5"}, {"WORLD_SIZE": "0"}, {"MASTER_PORT": "x"})
    odd += ({"MASTER_PORT": "0"}, {"MASTER_PORT": "99999"}, {"LOCAL_RANK": "7"}, {"RANK": "²"})
    for values in odd:
        made += [Try("a wrong place in a job", wrong_place, (part, values)) for part in FIRST]
    for rank in ("0", "1"):
        made.append(Try("a job whose others never come", alone_in_job, (rank,)))
        made.append(Try("a signal while a job waits", signal_in_wait, (rank, signal.SIGTERM)))
        made.append(Try("a signal while a job waits", signal_in_wait, (rank, signal.SIGINT)))
    for name, (env, scripts) in REAL.items():
        made += [Try(name, real_process, (script, env)) for script in scripts]
    made += [Try("name of unicode, LC_ALL=C", unicode_name)]
    made += [Try("HOME missing", no_home, (part,)) for part in FIRST]
    made += [Try("~ in a path flag", tilde, (where,)) for where in TILDES]
    made += [Try("output closed early", closed_output)]
    rng.shuffle(made)  # real processes beside quick ones
    return made


REAL = {  # variables of real processes, and the scripts that are started with them
    "MPLBACKEND of a notebook": (
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        tuple(SCRIPTS),
    ),
    "MPLBACKEND unknown": ({"MPLBACKEND": "no such backend"}, ("problem1_perceptual",)),
    "PYTHONSAFEPATH=1": ({"PYTHONSAFEPATH": "1"}, tuple(SCRIPTS)),
    "LC_ALL=C": (ASCII_ALONE, ("problem1_perceptual",)),
}


def _folder_for(folder: Path, part: str) -> None:
    tiny.write_photos(folder / "photos")
    if part != "1.1":
        _, _, base = reference(CALLS["2.2"])
        os.symlink(base / "cache", folder / "cache")


def job_without_job(folder: Path, part: str, values: tuple, whole: bool) -> None:
    """Any subset of a job's variables, empty or no number: never silent, never without an end."""
    env = dict(zip(JOB, values, strict=True)) | {"MASTER_PORT": None}
    _folder_for(folder, part)
    before = None if whole else stop_when_prepared
    seen = run(replace(FIRST[part], env=env, before=before), folder, limit_s=END_S).ends_well()
    there = list((folder / "out").rglob("results.json")) if whole else "prepared" in seen.out
    if seen.code == 0 and not (seen.out and there):
        seen.lose("results, and a line on stdout")


def wrong_place(folder: Path, part: str, values: dict) -> None:
    """All of a job's variables, one of them wrong: one line and exit 2."""
    env = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    env |= {"MASTER_PORT": "29517", **values}
    _folder_for(folder, part)
    seen = run(replace(FIRST[part], env=env), folder, limit_s=END_S)
    if seen.code != 2 or (env["RANK"] != "1" and not seen.err):
        seen.lose("one line and exit 2")


def _alone(folder: Path, rank: str, before=None) -> Running:
    """Start one process of a job of two."""
    env = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
    env["MASTER_PORT"] = str(20_000 + os.getpid() % 20_000)
    _folder_for(folder, "2.1")
    return Running(replace(FIRST["2.1"], env=env, before=before), folder)


def alone_in_job(folder: Path, rank: str) -> None:
    """One process of two: it says what it waits for, and ends in a line."""
    seen = _alone(folder, rank, wait_less).seen(limit_s=END_S).refuses()
    if len(seen.err.splitlines()) != 2:
        seen.lose("one line on what it waits for, and one at the end")


def signal_in_wait(folder: Path, rank: str, number: int) -> None:
    """One process of two, waiting: a signal ends it soon, in a line."""
    process = _alone(folder, rank)
    process.sleep(2)
    process.signal(number)
    seen = process.seen(limit_s=6)
    if seen.code != 128 + number:
        seen.lose(f"exit {128 + number}")
    seen.says_one_line(start=": stopped")


def _ask_quiet(folder: Path, script: str, argv: tuple, env: dict, *codes: int) -> None:
    """Run a real process; ask for one of these exit codes, and no traceback."""
    words = (sys.executable, ROOT / f"{script}.py", *argv)
    process = program(*words, cwd=folder, env={**os.environ, **env})
    _, err = process.communicate(timeout=60)
    text = err.decode(errors="backslashreplace")
    if process.returncode not in codes or "Traceback" in text:
        told = " ".join(map(str, (*(f"{key}={value}" for key, value in env.items()), *words)))
        raise Lost(f"exit {codes} | {told} | exit {process.returncode}; stderr: {text[-800:]!r}")


def real_process(folder: Path, script: str, env: dict) -> None:
    """A part that draws a figure, or the list of parts, in such an environment: exit 0."""
    argv = ("--list",)
    if script == "problem1_perceptual":
        argv = ("1.1", *tiny.PHOTOS)
        tiny.write_photos(folder / "photos")
    _ask_quiet(folder, script, argv, env, 0)


def unicode_name(folder: Path) -> None:
    """Names beyond ASCII where the terminal has ASCII alone: exit 0."""
    place = folder / "photos"
    place.mkdir()
    for number, name in enumerate(("猫.png", "ü ñ.png", "\udcff.png")):
        Image.fromarray(tiny.picture(number)).save(place / name)
    _ask_quiet(folder, "problem1_perceptual", ("1.1", *tiny.PHOTOS), ASCII_ALONE, 0)


def no_home(folder: Path, part: str) -> None:
    """No HOME, and one that is not there: it runs, as no part here needs one."""
    _folder_for(folder, part)
    for home in (None, "/nonexistent/home"):
        run(replace(FIRST[part], env={"HOME": home}), folder).completes()


TILDES = {  # the script and its words before the flag
    "--out": ("problem1_perceptual", ("1.1", *tiny.PHOTOS[:-2])),
    "--cache": ("problem2_flowers", ("2.2", *tiny.TRAINED)),
    "--images": ("problem1_perceptual", ("1.1", *tiny.PHOTOS[2:])),
    "--image": ("problem1_perceptual", ("1.1", *tiny.PHOTOS[2:])),
    "--reference": ("problem1_perceptual", ("1.2", *tiny.PHOTOS)),
    "--weights": ("problem1_perceptual", ("1.2", *tiny.PHOTOS)),
    "--data-root": ("problem2_flowers", ("2.1", "--data", "flowers102")),
    "--init": ("problem2_flowers", ("2.2", *tiny.TRAINED)),
    "--from-narrow": ("problem2_flowers", ("2.3", *tiny.TRAINED)),
    "--data": ("problem3_resnet36", ("3.1",)),
    "--manifest": ("problem3_resnet36", ("3.1", "--data", "photos")),
}


def tilde(folder: Path, flag: str) -> None:
    """A path that begins with ~ is in the user's home, as --flag ~/x and as --flag=~/x."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    tiny.write_photos(work / "photos")
    script, words = TILDES[flag]
    for form in ((flag, "~/x"), (f"{flag}=~/x",)):
        seen = run(Call(script, (*words, *form), {"HOME": str(home)}), work)
        if (work / "~").exists():
            seen.lose("no folder named ~")
        if flag not in ("--out", "--cache"):
            seen.refuses(str(home / "x"))
        elif not (seen.completes() and (home / "x").is_dir()):
            seen.lose("a folder x in the home")


def closed_output(folder: Path) -> None:
    """Whoever reads the output has closed it: no traceback."""
    tiny.write_photos(folder / "photos")
    words = (sys.executable, ROOT / "problem1_perceptual.py", "1.1", *tiny.PHOTOS)
    process = program(*words, cwd=folder)
    process.stdout.close()
    err = process.stderr.read()
    process.wait(60)
    if process.returncode not in (0, 141) or b"Traceback" in err:
        told = " ".join(map(str, words))
        raise Lost(f"exit 141 | {told} | head -0 | exit {process.returncode}, {err[-500:]}")
