"""Flags: every one with wrong values, and random combinations: exit 0, or one line and exit 2."""

import argparse
import random
from dataclasses import replace
from pathlib import Path

from common import cli
from tests.faults import tiny
from tests.faults.harness import SCRIPTS, Call, Seen, Try, run

WRONG = (
    *("abc", "-1", "0", "0.5", "1e20", "9" * 21, "2147483647", "nan", "inf", "", "--"),
    *("-", "~nobody-of-that-name/x", "/dev/null"),
)
BASES = {
    "problem1_perceptual": ("1.1", *tiny.PHOTOS),
    "problem2_flowers": ("2.1", *tiny.FLOWERS),
    "problem3_resnet36": ("3.2", *tiny.FOLDERS),
}
# Flags that other parts read: these are asked for, and the run cut short after what it prepares.
PARTS = {
    "problem1_perceptual": ("1.1", "1.2", "1.3"),
    "problem2_flowers": ("2.1", "2.2", "2.3", "2.4", "2.5", "2.6"),
    "problem3_resnet36": ("3.1", "3.2", "3.3", "3.4"),
}
NEEDING_MORE = {
    *("--layers", "--weights", "--reference", "--max-references", "--no-lpips", "--curve-size"),
    *("--layer", "--init", "--from-narrow", "--data", "--manifest", "--per-class", "--classes"),
    *("--split", "--allow-fewer", "--diagnose", "--noise-area", "--width"),
}
LIKELY = (
    "1",
    "2",
    "3",
    "8",
    "32",
    "64",
    "0.1",
    "0.5",
    "0",
    "0.9",
    "1e-3",
    "1.5",
    "photos",
    "cache",
)
LEFT_OUT = {"--help", "--list", "--out", "--cache"}  # of random combinations
MEMORY_BYTES = 6 * 2**30
COMBINATIONS = 300


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    made = []
    for script, module in SCRIPTS.items():
        flags = [action for action in module.make_parser()._actions if action.option_strings]
        for action in flags if not quick else rng.sample(flags, 2):
            values = rng.sample(WRONG, 2) if quick else WRONG
            for words in _spoilt(action, values):
                made.append(Try(f"flags of {script}", one_flag, (script, words)))
        for _ in range(2 if quick else COMBINATIONS // len(SCRIPTS)):
            words = _combination(rng, script, flags)
            made.append(Try(f"combinations, {script}", combination, (script, words)))
    return made


def _spoilt(action: argparse.Action, values: tuple) -> list[tuple]:
    """The flag with each of the values, and with none or too many."""
    flag = action.option_strings[-1]
    if action.nargs == 0:
        return [(flag,), (flag, flag), (f"{flag}=x",), (f"{flag}=",), (flag, "--")]
    count = action.nargs if isinstance(action.nargs, int) else 1
    spoilt: list[tuple] = [(flag, *[value] * count) for value in values]
    return [*spoilt, (f"{flag}=--",), (f"{flag}=-1",), (flag,), (flag, "1", flag, "abc")]


def _combination(rng: random.Random, script: str, flags: list[argparse.Action]) -> tuple:
    """Two to six random flags with random values, most of them allowed."""
    parts, words = rng.sample(PARTS[script], rng.randrange(1, 3)), []
    for action in rng.sample(flags, rng.randrange(2, 7)):
        flag = action.option_strings[-1]
        if flag in LEFT_OUT:
            continue
        count = action.nargs if isinstance(action.nargs, int) else 1
        likely = tuple(map(str, action.choices or ())) * 3 + LIKELY
        pool = WRONG if rng.random() < 0.2 else likely
        words += [flag, *(rng.choice(pool) for _ in range(count))]
    return (*words, "--seed", "1", *parts)


# ---------------------------------------------------------------------------------------- the tries


def stop_when_prepared() -> None:
    """Let the scripts end after what they check and prepare."""
    cli.run_parts = lambda *_args, **_options: print("prepared")


def _base(script: str, words: tuple) -> Call:
    flag = words[0].split("=")[0]
    base = BASES[script]
    if flag in NEEDING_MORE:
        base = (*PARTS[script], *base[1:])
    elif script != "problem2_flowers":
        return Call(script, (*base, *words), memory_bytes=MEMORY_BYTES)
    if flag == "--manifest":
        base = (*(word for word in base if word not in ("--data", "synthetic")), "--data", "photos")
    return Call(script, (*base, *words), before=stop_when_prepared, memory_bytes=MEMORY_BYTES)


def _ask(seen: Seen) -> None:
    if seen.code != 0 and len(seen.err.splitlines()) != 1:
        seen.lose("one line and exit 2")
    seen.ends_well()


def one_flag(folder: Path, script: str, words: tuple) -> None:
    """One flag with a wrong type, negative, zero, huge, NaN, empty or `--`."""
    tiny.write_photos(folder / "photos")
    _ask(run(_base(script, words), folder))


def combination(folder: Path, script: str, words: tuple) -> None:
    """A random combination, as far as what is checked and prepared."""
    tiny.write_photos(folder / "photos")
    call = Call(script, (*BASES[script][1:], *words), memory_bytes=MEMORY_BYTES)
    _ask(run(replace(call, before=stop_when_prepared), folder))
