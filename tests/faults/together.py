"""Two at once on one cache and one output folder; and the same command twice."""

import random
import shutil
from dataclasses import replace
from pathlib import Path

from tests.faults import equal, tiny
from tests.faults.harness import Call, Lost, Running, Seen, Try, run
from tests.faults.reference import CALLS, goes_on, reference

GAPS_S = (0, 0.05, 0.3, 0.8)


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    del rng
    if quick:
        return [Try("two at once, one folder", same_command, ("2.2", 0.05))]
    made = []
    for name in ("2.2", "3.1 3.4", "1.1 to 1.3"):
        for gap in GAPS_S if name == "2.2" else GAPS_S[1:3]:
            made.append(Try("two at once, one folder", same_command, (name, gap)))
    for name in ("2.2", "3.1"):
        for gap in GAPS_S:
            made.append(Try("two at once, one cache", same_cache, (name, gap)))
    for gap in GAPS_S:
        made.append(Try("two at once, other rates", other_rates, (gap,)))
    for gap in GAPS_S:
        made.append(Try("two at once, other parts", other_parts, (gap,)))
    for name in ("2.2", "2.1 2.3 2.6", "3.1 3.4", "1.1 to 1.3"):
        for threads in (1, 2) if name != "2.1 2.3 2.6" else (1,):
            made.append(Try(f"the same twice, {threads} thread(s)", twice, (name, threads)))
    return made


def _both(first: Call, second: Call, folder: Path, gap: float) -> list[Seen]:
    tiny.write_photos(folder / "photos")
    one = Running(first, folder, "first")
    one.sleep(gap)
    two = Running(second, folder, "second")
    seen = [one.seen(), two.seen()]
    for process in (one, two):
        process.leaves_no_process()
    return seen


def same_command(folder: Path, name: str, gap: float) -> None:
    """The same command twice at once: one works; the other waits, or ends in a line."""
    call = CALLS[name]
    wanted, _, _ = reference(call)
    seen = [each.ends_well() for each in _both(call, call, folder, gap)]
    if all(each.code for each in seen):
        seen[0].lose("one of the two completes")
    goes_on(call, folder, wanted)


def same_cache(folder: Path, name: str, gap: float) -> None:
    """One cache, an output folder each: one builds the cache, both complete."""
    call = CALLS[name]
    wanted, _, _ = reference(call)
    other = replace(call, argv=(*call.argv, "--out", "out2"))
    for each in _both(call, other, folder, gap):
        each.completes()
    equal.ask(wanted, equal.digest(folder / "out"), call.text)
    shutil.move(folder / "out", folder / "out1")
    shutil.move(folder / "out2", folder / "out")
    goes_on(call, folder, wanted)


def other_rates(folder: Path, gap: float) -> None:
    """One output folder, two rates: one completes, the other is refused; the files are of one."""
    call = CALLS["2.2"]
    other = replace(call, argv=(*call.argv, "--lr", 0.01))
    seen = _both(call, other, folder, gap)
    codes = sorted(each.code for each in seen)
    if codes != [0, 2]:
        raise Lost(f"exits 0 and 2 | {call.text} and with --lr 0.01 | exits {codes}")
    winner = seen[0] if seen[0].code == 0 else seen[1]
    loser = seen[1] if winner is seen[0] else seen[0]
    loser.refuses()
    wanted, _, _ = reference(winner.call)
    goes_on(winner.call, folder, wanted)


def other_parts(folder: Path, gap: float) -> None:
    """One output folder, a part each: both are in results.json at the end."""
    both = CALLS["2.1 2.2"]
    wanted, _, _ = reference(both)
    calls = [
        replace(both, argv=(part, *(word for word in both.argv if word not in ("2.1", "2.2"))))
        for part in ("2.1", "2.2")
    ]
    for each in _both(*calls, folder, gap):
        each.completes()
    equal.ask(wanted, equal.digest(folder / "out"), both.text)
    equal.ask_tidy(folder / "out", folder / "cache")


def twice(folder: Path, name: str, threads: int) -> None:
    """The same command in two folders: equal weights, results and figures, byte for byte."""
    call = replace(CALLS[name], threads=threads)
    wanted, _, base = reference(call)
    tiny.write_photos(folder / "photos")
    run(call, folder).completes()
    equal.ask(wanted, equal.digest(folder / "out"), call.text)
    equal.ask(equal.figures(base / "out"), equal.figures(folder / "out"), call.text)
    for path in sorted((base / "out").rglob("best.pt")):
        if path.read_bytes() != (folder / path.relative_to(base)).read_bytes():
            raise Lost(f"equal files | {call.text} | {path.relative_to(base)} differs")
