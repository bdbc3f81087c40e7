"""Damaged files: cut short, empty, a bit flipped, or whole and with the wrong things in them."""

import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from common import files
from tests.faults import equal
from tests.faults.harness import Call, Try, run
from tests.faults.reference import CALLS, reference

RUN = "out/problem2/runs/*/"
# What is damaged: where it is, how often a bit is flipped, and whether it can be made again.
TARGETS = {
    "last.pt": (RUN + "last.pt", 40, False),
    "best.pt": (RUN + "best.pt", 40, False),
    "images.npy": ("cache/*/images.npy", 40, True),
    "about.json": ("cache/*/about.json", 15, True),
    "results.json": ("out/problem2/results.json", 15, False),
    "test.json": (RUN + "test.json", 8, True),
    "metrics.jsonl": (RUN + "metrics.jsonl", 8, True),
    "SHA256SUMS of a run": (RUN + "SHA256SUMS", 5, True),
    "SHA256SUMS of the cache": ("cache/*/SHA256SUMS", 2, True),
    "SHA256SUMS of results": ("out/problem2/SHA256SUMS", 2, True),
    "manifest": ("out/problem3/3.1_manifest.csv", 25, False),
}


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    made = []
    for name, (_, flips, _) in TARGETS.items():
        if quick and name not in ("last.pt", "images.npy"):
            continue
        ways = ["flip"] * (1 if quick else flips) + ["cut"] * (0 if quick else 3)
        for way in [*ways, *(["empty", "gone"] if not quick else [])]:
            made.append(Try(f"damaged: {name}", damaged, (name, way, rng.random())))
    if quick:
        return made
    made += [Try("wrong contents: last.pt", wrong_last, (what,)) for what in WRONG_LAST]
    made += [Try("wrong contents: best.pt", wrong_best, (what,)) for what in WRONG_BEST]
    made += [Try("wrong contents: cache", wrong_cache, (what,)) for what in WRONG_CACHE]
    made += [Try("wrong contents: results.json", wrong_results, (what,)) for what in WRONG_JSON]
    made += [Try("wrong contents: test.json", wrong_test, (what,)) for what in WRONG_JSON]
    made += [
        Try("wrong contents: best.pt of another run", another_best, (flags,))
        for flags in OTHER_RUNS
    ]
    return made


OTHER_RUNS = (("--seed", 1), ("--lr", 0.01), ("--epochs", 1), ("--weight-decay", 0.1))


def _spoil(path: Path, way: str, fraction: float) -> None:
    if way == "gone":
        path.unlink()
        return
    content = bytearray(path.read_bytes())
    place = int(fraction * len(content) * 8)
    if way == "flip":
        content[place // 8] ^= 1 << place % 8
    else:
        del content[place // 8 if way == "cut" else 0 :]
    path.write_bytes(content)


def _copy(base: Path, folder: Path) -> None:
    for name in ("out", "cache"):
        shutil.copytree(base / name, folder / name)


def by_manifest(folder: Path) -> tuple[Call, Path]:
    """A call that draws the data set of an earlier one by its manifest, and that file."""
    _copy(reference(CALLS["3.1"])[2], folder)
    data = next((folder / "cache").glob("flowers-*")) / "train"
    path = next(folder.glob(TARGETS["manifest"][0]))
    flags = ("--data", data, "--image-size", 32, "--cache", "cache", "--out", "new")
    return Call("problem3_resnet36", ("3.1", *flags, "--manifest", path.relative_to(folder))), path


def damaged(folder: Path, name: str, way: str, fraction: float) -> None:
    """A file of a complete run: refused by name, or made again to equal values."""
    pattern, _, again = TARGETS[name]
    call = CALLS["3.1" if name == "manifest" else "2.2"]
    wanted, _, base = reference(call)
    if name == "manifest":
        call, path = by_manifest(folder)
    else:
        _copy(base, folder)
        path = min(folder.glob(pattern))
    _spoil(path, way, fraction)
    before = path.read_bytes() if path.exists() else None
    _ask_refused_or_equal(call, folder, wanted, path, again or way == "gone", before)


def _ask_refused_or_equal(
    call: Call, folder: Path, wanted: dict, path: Path, again: bool, before: bytes | None
) -> None:
    seen = run(call, folder)
    if seen.code == 0 and again:
        seen.completes()
        equal.ask(wanted, equal.digest(folder / "out"), call.text)
    else:
        named = path.name if path.name != "SHA256SUMS" else path.parent.name
        seen.refuses(named)
        changes = path.name == "SHA256SUMS"  # of what else is written before it is refused
        if before is not None and not changes and path.read_bytes() != before:
            seen.lose(f"{path.name} left as it was")


# -------------------------------------------------------- whole files with the wrong things in them


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    """Replace a checkpoint by what `change` makes of it, its line in SHA256SUMS renewed."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    changed = change(state)
    torch.save(state if changed is None else changed, path)
    files.record(path)


def _with(**values) -> Callable[[dict], None]:
    return lambda state: state.update(values)


def _nan_weights(state: dict) -> None:
    for tensor in state["network"].values():
        if tensor.is_floating_point():
            tensor.fill_(math.nan)


def _other_shapes(state: dict) -> None:
    state["network"] = {key: torch.zeros(3, 2) for key in state["network"]}


WRONG_LAST = {
    "{}": lambda _: {},
    "a list": lambda _: [1, 2],
    "a tensor": lambda _: torch.zeros(3),
    "no optimizer": lambda state: state.pop("optimizer") and None,
    "no network": lambda state: state.pop("network") and None,
    "no history": lambda state: state.pop("history") and None,
    "epoch -5": _with(epoch=-5),
    "epoch 99": _with(epoch=99),
    "epoch 'a'": _with(epoch="a"),
    "step -3": _with(step=-3, epoch=1),
    "step 10^9": _with(step=10**9, epoch=1),
    "an empty optimizer": _with(optimizer={}),
    "an empty history": _with(history=[]),
    "a history of words": _with(history=["a", "b"]),
    "NaN weights": _nan_weights,
    "weights of other shapes": _other_shapes,
}
WRONG_BEST = {
    "{}": lambda _: {},
    "a list": lambda _: [1, 2],
    "NaN weights": _nan_weights,
    "weights of other shapes": _other_shapes,
    "no network": lambda state: state.pop("network") and None,
    "no identity": lambda state: state.pop("about") and None,
}


def _wrong_checkpoint(folder: Path, name: str, change: Callable) -> None:
    wanted, _, base = reference(CALLS["2.2"])
    _copy(base, folder)
    path = next(folder.glob(RUN + name))
    _edit(path, change)
    before = path.read_bytes()
    _ask_refused_or_equal(CALLS["2.2"], folder, wanted, path, False, before)


def wrong_last(folder: Path, what: str) -> None:
    """A last.pt whose SHA-256 is right and whose contents are not: refused by name."""
    _wrong_checkpoint(folder, "last.pt", WRONG_LAST[what])


def wrong_best(folder: Path, what: str) -> None:
    """A best.pt whose SHA-256 is right and whose contents are not: refused by name."""
    _wrong_checkpoint(folder, "best.pt", WRONG_BEST[what])


def another_best(folder: Path, flags: tuple) -> None:
    """best.pt of another run: refused by name."""
    wanted, _, base = reference(CALLS["2.2"])
    other = replace(CALLS["2.2"], argv=(*CALLS["2.2"].argv, *flags))
    _, _, other_base = reference(other)
    _copy(base, folder)
    path = next(folder.glob(RUN + "best.pt"))
    shutil.copyfile(next(other_base.glob(RUN + "best.pt")), path)
    files.record(path)
    _ask_refused_or_equal(CALLS["2.2"], folder, wanted, path, False, path.read_bytes())


def _save_npy(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)), allow_pickle=True)
    files.record(path)


def _save_json(path: Path, value) -> None:
    path.write_text(json.dumps(value))
    files.record(path)


def _edit_about(cache: Path, **values) -> None:
    path = cache / "about.json"
    _save_json(path, {**json.loads(path.read_text()), **values})


WRONG_CACHE = {
    "float32 images": lambda c: _save_npy(c / "images.npy", lambda a: a.astype(np.float32)),
    "8 px squares": lambda c: _save_npy(c / "images.npy", lambda a: a[:, :8, :8].copy()),
    "an image less": lambda c: _save_npy(c / "images.npy", lambda a: a[1:].copy()),
    "grey images": lambda c: _save_npy(c / "images.npy", lambda a: a[..., :1].copy()),
    "objects": lambda c: _save_npy(c / "images.npy", lambda a: a[:, 0, 0].astype(object)),
    "about.json {}": lambda c: _save_json(c / "about.json", {}),
    "about.json []": lambda c: _save_json(c / "about.json", []),
    "rows out of range": lambda c: _edit_about(c, rows=[10**6] * 12),
    "rows of words": lambda c: _edit_about(c, rows=["a"] * 12),
    "negative rows": lambda c: _edit_about(c, rows=[-1] * 12),
}


def wrong_cache(folder: Path, what: str) -> None:
    """A packed cache whose SHA-256 is right and whose contents are not: refused, or made again."""
    wanted, _, base = reference(CALLS["2.2"])
    _copy(base, folder)
    cache = next(path for path in (folder / "cache").glob("*train*") if path.is_dir())
    WRONG_CACHE[what](cache)
    call = replace(CALLS["2.2"], argv=(*CALLS["2.2"].argv, "--fresh"))
    seen = run(call, folder)
    if seen.code == 0:
        equal.ask(wanted, equal.digest(folder / "out"), call.text)
    else:
        seen.refuses(cache.name)


DEEP = "[" * 100_000
WRONG_JSON = ("[]", "{}", "null", '"a"', DEEP, '{"files": 1}', '{"files": {}, "parts": []}', "\0")


def wrong_results(folder: Path, what: str) -> None:
    """A results.json of something else: refused by name, left as it is."""
    wanted, _, base = reference(CALLS["2.2"])
    _copy(base, folder)
    path = folder / "out/problem2/results.json"
    path.write_text(what)
    files.record(path)
    _ask_refused_or_equal(CALLS["2.2"], folder, wanted, path, False, path.read_bytes())


def wrong_test(folder: Path, what: str) -> None:
    """A test.json of something else: made again, or refused by name."""
    wanted, _, base = reference(CALLS["2.2"])
    _copy(base, folder)
    path = next(folder.glob(RUN + "test.json"))
    path.write_text(what)
    files.record(path)
    _ask_refused_or_equal(CALLS["2.2"], folder, wanted, path, True, None)
