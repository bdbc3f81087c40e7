"""Kill anywhere: SIGKILL, SIGTERM, Ctrl-C at random moments; the same command goes on exactly."""

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from common.reporting.results import ROOT
from common.training import loop, parallel
from tests.faults import tiny
from tests.faults.harness import SCRIPTS, Call, Lost, Running, Try, program, ranks
from tests.faults.reference import CALLS, goes_on, reference

KILLS = {"2.2": 48, "2.1 2.3 2.6": 6, "3.1 3.4": 14, "1.1 to 1.3": 10}
SIGNALS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}
STEP_S = 0.05  # that a step is made to take where a signal shall meet a training
AT_ONCE_S = 1.5


def tries(rng: random.Random, quick: bool) -> list[Try]:
    """All tries of this section."""
    made = []
    for name, count in ({"2.2": 2} if quick else KILLS).items():
        for _ in range(count):
            made.append(Try(f"SIGKILL, {name}", killed, (name, rng.random())))
    for number, name in SIGNALS.items():
        for _ in range(1 if quick else 8):
            place = (number, rng.random())
            made.append(Try(f"{name} in training, 2.2", stopped_in_training, place))
    return made if quick else [*made, *_more_tries(rng)]


def _more_tries(rng: random.Random) -> list[Try]:
    made = [
        Try(f"SIGKILL, 2.2 by 2 ranks, {who}{' (no torchrun)' * by_hand}", ranks_killed, how)
        for who in ("one", "all")
        for by_hand in (False, True)
        for how in [(who, by_hand, rng.random()) for _ in range(3 if by_hand else 8)]
    ]
    for number, name in SIGNALS.items():
        for part, count in {"2.2": 8, "3.1 3.4": 3, "1.1 to 1.3": 3}.items():
            made += [
                Try(f"{name} anywhere", stopped, (part, number, rng.random())) for _ in range(count)
            ]
        for _ in range(3):
            made.append(Try(f"{name} of 2 ranks", ranks_stopped, (number, rng.random())))
            made.append(Try(f"{name} while it starts", stopped_at_start, (number, rng.random())))
        made.append(Try("second Ctrl-C", stopped_twice, (number, signal.SIGINT)))
    made += [Try("SIGKILL while it starts", killed_at_start, (rng.random(),)) for _ in range(4)]
    return made


# ------------------------------------------------------------------------------------ the tries


def killed(folder: Path, name: str, fraction: float) -> None:
    """SIGKILL of one process at a fraction of its time."""
    call = CALLS[name]
    wanted, seconds, _ = reference(call)
    tiny.write_photos(folder / "photos")
    process = Running(call, folder)
    process.sleep(fraction * seconds)
    process.signal(signal.SIGKILL)
    process.sleep(5)
    process.leaves_no_process()
    goes_on(call, folder, wanted)


def _own_lines(err: str) -> list[str]:
    """Lines but those on what is waited for."""
    return [line for line in err.splitlines() if " waits at " not in line]


def wait_less() -> None:
    """Let a job's processes wait for each other for seconds alone."""
    parallel.JOIN_SECONDS, parallel.SILENT_SECONDS = 4, 1


def ranks_killed(folder: Path, who: str, by_hand: bool, fraction: float) -> None:
    """SIGKILL of one process of two, or of both: the other ends soon by itself."""
    call = CALLS["2.2"]
    wanted, seconds, _ = reference(call, 2)
    processes = ranks(replace(call, before=wait_less), folder, by_hand=by_hand)
    processes[0].sleep(fraction * seconds)
    for process in processes if who == "all" else processes[: 1 + int(fraction * 100) % 2][-1:]:
        process.signal(signal.SIGKILL)
    for process in processes:
        seen = process.seen(limit_s=45)
        if seen.code not in (-signal.SIGKILL, 0) and len(_own_lines(seen.err)) > 1:
            seen.lose("one line on stderr of the process that is left")
        process.leaves_no_process()
    goes_on(call, folder, wanted, 2)


def stopped(folder: Path, name: str, number: int, fraction: float) -> None:
    """SIGTERM or Ctrl-C at a fraction of the time: a line, its exit code, and it goes on."""
    call = CALLS[name]
    wanted, seconds, _ = reference(call)
    tiny.write_photos(folder / "photos")
    began = folder / "began"  # the child is the script from then on
    process = Running(replace(call, before=partial(Path.touch, began)), folder)
    process.wait_for(began)
    process.sleep(fraction * seconds)
    process.signal(number)
    seen = process.seen(limit_s=20)
    if seen.code != 0:  # else it was over
        _ask_stopped(seen, number)
    process.leaves_no_process()
    goes_on(call, folder, wanted)


def _ask_stopped(seen, number: int, *named: str) -> None:
    if seen.code != 128 + number:
        seen.lose(f"exit {128 + number}")
    seen.says_one_line(*named, start=": stopped")


def slow_steps(marker: Path, seconds: float = STEP_S) -> None:
    """Let every step take longer, and leave a file when the first one begins."""
    take_step = loop.train_step

    def slow_step(*args, **options):
        marker.touch()
        time.sleep(seconds)
        return take_step(*args, **options)

    loop.train_step = slow_step


def stopped_in_training(folder: Path, number: int, fraction: float) -> None:
    """A signal during a step: the run is saved, and the line says how to go on."""
    call = CALLS["2.2"]
    wanted, _, _ = reference(call)
    process = Running(replace(call, before=partial(slow_steps, folder / "training")), folder)
    if not process.wait_for(folder / "training"):
        process.seen().lose("a training")
    time.sleep(fraction * 3 * STEP_S)
    process.signal(number)
    seen = process.seen(limit_s=20)
    _ask_stopped(seen, number, "the same command")
    if not list(folder.rglob("last.pt")):
        seen.lose("a run that is saved")
    goes_on(call, folder, wanted)


def stopped_twice(folder: Path, first: int, second: int) -> None:
    """A second Ctrl-C ends at once, in the middle of a long step."""
    call = replace(CALLS["2.2"], before=partial(slow_steps, folder / "training", 30))
    process = Running(call, folder)
    if not process.wait_for(folder / "training"):
        process.seen().lose("a training")
    process.signal(first)
    time.sleep(0.3)
    process.signal(second)
    if not process.sleep(AT_ONCE_S):
        process.kill_session()
        process.seen().lose(f"an end within {AT_ONCE_S} s of the second signal")
    process.leaves_no_process()


def ranks_stopped(folder: Path, number: int, fraction: float) -> None:
    """A signal to both of two processes, as a terminal sends it: one line in all."""
    call = CALLS["2.2"]
    wanted, _, _ = reference(call, 2)
    slow = replace(call, before=partial(slow_steps, folder / "training"))
    processes = ranks(slow, folder)
    if not processes[0].wait_for(folder / "training"):
        processes[0].seen().lose("a training")
    time.sleep(fraction * 3 * STEP_S)
    for process in processes:
        process.signal(number)
    seen = [process.seen(limit_s=45) for process in processes]
    _ask_stopped(seen[0], number, "the same command")
    if seen[1].code != 128 + number or seen[1].err:
        seen[1].lose(f"no second line, exit {128 + number}")
    goes_on(call, folder, wanted, 2)


# ----------------------------------------------------------------- real processes, while they start


def _start(call: Call, folder: Path) -> subprocess.Popen:
    script = ROOT / f"{call.script}.py"
    options = {"cwd": folder, "text": True, "start_new_session": True}
    return program(sys.executable, script, *call.argv, **options)


def _any_call(fraction: float) -> Call:
    script = sorted(SCRIPTS)[int(fraction * 1000) % len(SCRIPTS)]
    return Call(script, ("--list",))


def stopped_at_start(folder: Path, number: int, fraction: float) -> None:
    """A signal while PyTorch is loaded: one line, no traceback."""
    call = _any_call(fraction)
    process = _start(call, folder)
    time.sleep(0.15 + 2 * fraction)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    if process.returncode != 128 + number or len(err.splitlines()) != 1 or "Traceback" in err:
        raise Lost(
            f"one line, exit {128 + number} | {call.text}, signal after {0.15 + 2 * fraction:.2f} s"
            f" | exit {process.returncode}; stderr: {err[-800:]!r}"
        )


def killed_at_start(folder: Path, fraction: float) -> None:
    """SIGKILL of a real process within its first seconds; then a child goes on exactly."""
    call = CALLS["1.1 to 1.3"]
    wanted, _, _ = reference(call)
    tiny.write_photos(folder / "photos")
    process = _start(call, folder)
    time.sleep(6 * fraction)
    process.kill()
    process.communicate(timeout=30)
    goes_on(call, folder, wanted)
