"""A try: a script run in a forked child with a fault done to it, and what is right asked of it."""

import contextlib
import multiprocessing
import os
import random
import re
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist

import problem1_perceptual
import problem2_flowers
import problem3_resnet36
from common import errors
from common.reporting.results import ROOT
from tests.faults import tiny

SCRIPTS = {
    module.__name__: module for module in (problem1_perceptual, problem2_flowers, problem3_resnet36)
}
NO_NETWORK = "http://127.0.0.1:9"  # nobody listens: a download fails at once
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "http_proxy": NO_NETWORK, "https_proxy": NO_NETWORK}
LIMIT_S = 90  # of a call that nothing is done to
GONE_S = 8  # until the processes of one that was killed have gone
SHOWN_CHARACTERS = 1500
# What may stand above the one line that says how it ended.
REMARK = re.compile(
    r"waiting for another process|process \d+ waits at|.*left out|.*one process|warning: "
)


class Lost(Exception):
    """What was seen is not what is right."""


class Skipped(Exception):
    """The machine does not have what the try needs."""


@dataclass(frozen=True)
class Try:
    """One try of a fault: `function(folder, *args)` returns where it survives, else raises Lost."""

    fault: str
    function: Callable
    args: tuple = ()


@dataclass(frozen=True)
class Call:
    """A command line and where it runs.

    script: its name without ending. env: variables set, or removed where None. before: called in
    the child, after the tiny networks are in place. threads: of PyTorch. uid: of another user.
    memory_bytes: of address space, beyond what is there.
    """

    script: str
    argv: tuple
    env: dict = field(default_factory=dict)
    before: Callable[[], None] | None = None
    threads: int = 1
    uid: int | None = None
    memory_bytes: int | None = None

    @property
    def text(self) -> str:
        """As a shell would take it."""
        variables = [f"{key}={value}" for key, value in self.env.items() if value is not None]
        words = [
            *variables,
            "python",
            f"{self.script}.py",
            *map(os.fsdecode, map(_word, self.argv)),
        ]
        return shlex.join(words)


def _word(value) -> bytes:
    return value if isinstance(value, bytes) else os.fsencode(str(value))


@dataclass(frozen=True)
class Seen:
    """How a call ended: its exit code (-9: killed), what it printed, and its seconds."""

    call: Call
    code: int
    out: str
    err: str
    seconds: float

    def lose(self, wanted: str):
        """Raise Lost with all that was seen."""
        shown = f"exit {self.code}; stderr: {self.err[-SHOWN_CHARACTERS:]!r}"
        raise Lost(f"{wanted} | {self.call.text} | {shown}")

    def completes(self) -> "Seen":
        """Ask for exit 0 and no traceback."""
        if self.code != 0 or "Traceback" in self.err:
            self.lose("exit 0")
        return self

    def refuses(self, *named: str) -> "Seen":
        """Ask for exit 2 and one line of error, which names each of `named`."""
        if self.code != 2:
            self.lose("exit 2")
        self.says_one_line(*named, start=": error: ")
        return self

    def says_one_line(self, *named: str, start: str = ": ") -> "Seen":
        """Ask for one line on stderr by the script, the last; what it waits for may be above."""
        lines = self.err.splitlines()
        ours = [line for line in lines if line.startswith(f"{self.call.script}.py{start}")]
        others = [line for line in lines[:-1] if not REMARK.match(line)]
        if len(ours) != 1 or lines[-1] != ours[0] or others:
            self.lose("one line on stderr")
        if any(name not in ours[0] for name in named):
            self.lose(f"a line that names {named}")
        return self

    def ends_well(self) -> "Seen":
        """Ask for exit 0, or one line and exit 2."""
        return self.completes() if self.code == 0 else self.refuses()


class Running:
    """A call under way in a child, which leads a session of its own."""

    def __init__(self, call: Call, folder: Path, name: str = "call", logs: Path | None = None):
        self.call, self.folder = call, folder
        self.out, self.err = ((logs or folder) / f"{name}.{end}" for end in ("out", "err"))
        self.start, self.code = time.monotonic(), None
        self.pid = os.fork()
        if self.pid == 0:
            _run_child(call, folder, self.out, self.err)

    def poll(self) -> bool:
        """Whether it has ended."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is not None

    def sleep(self, seconds: float) -> bool:
        """Wait so long, or until it has ended; returns whether it has."""
        end = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < end:
            time.sleep(0.005)
        return self.code is not None

    def wait_for(self, path: Path, seconds: float = LIMIT_S) -> bool:
        """Wait until a file is there; returns whether it is."""
        end = time.monotonic() + seconds
        while not path.exists() and not self.poll() and time.monotonic() < end:
            time.sleep(0.005)
        return path.exists()

    def signal(self, number: int) -> None:
        """Send a signal to the process alone, where it still runs."""
        if not self.poll():
            os.kill(self.pid, number)

    def seen(self, limit_s: float = LIMIT_S) -> Seen:
        """Wait for its end, and that of all processes that it started."""
        ended = self.sleep(limit_s)
        if not ended:
            self.kill_session()
            self.sleep(5)
        seconds = time.monotonic() - self.start
        seen = Seen(self.call, self.code, _text(self.out), _text(self.err), seconds)
        if not ended:
            seen.lose(f"an end within {limit_s:.0f} s")
        return seen

    def leaves_no_process(self) -> None:
        """Ask that all processes of its session have gone, soon after its end."""
        end = time.monotonic() + GONE_S
        while (left := _session(self.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        if left:
            self.kill_session()
            raise Lost(f"no process left after {GONE_S} s | {self.call.text} | {len(left)} left")

    def kill_session(self) -> None:
        """SIGKILL to it and to all that it started."""
        for pid in {self.pid, *_session(self.pid)}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def run(
    call: Call,
    folder: Path,
    name: str = "call",
    logs: Path | None = None,
    limit_s: float = LIMIT_S,
) -> Seen:
    """Run a call to its end; what it prints goes into `logs`, or the folder that it runs in."""
    return Running(call, folder, name, logs).seen(limit_s)


def ranks(
    call: Call, folder: Path, count: int = 2, name: str = "rank", by_hand: bool = False
) -> list[Running]:
    """Start the processes of a job, as torchrun would.

    by_hand: without the process by which torchrun lets them meet; the first of them does it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ends, started = os.pipe(), []  # the ranks hold one end, so that their agent sees them end
    if not by_hand:
        job |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        if os.fork() == 0:
            _run_agent(port, *ends)
    for rank in range(count):
        env = {**call.env, **job, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        started.append(Running(replace(call, env=env), folder, f"{name}{rank}"))
    for end in ends:
        os.close(end)
    return started


def _run_agent(port: int, ours: int, theirs: int) -> None:
    """Keep a job's store until its processes have ended: never returns."""
    os.setsid()
    os.close(theirs)
    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    os.read(ours, 1)
    os._exit(0 if store else 1)


def generator(seed) -> random.Random:
    """Randomness of a seed."""
    return random.Random(seed)


def program(*words, **options) -> subprocess.Popen:
    """Start a program; its output is read from pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*map(str, words)], **pipes, **options)


def _text(path: Path) -> str:
    return path.read_text("utf-8", "backslashreplace") if path.exists() else ""


def _session(leader: int) -> list[int]:
    """The processes of a session that have not ended."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, _, session = (
                    entry.joinpath("stat").read_text().rpartition(")")[2].split()[:4]
                )
                if int(session) == leader and state not in "ZX":
                    members.append(int(entry.name))
    return members


# --------------------------------------------------------------------------------- in the child


def _run_child(call: Call, folder: Path, out: Path, err: Path) -> None:
    """Become the script: never returns."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        multiprocessing.process._parent_process = None  # as in a program of its own
        _redirect(out, err)
        os.chdir(folder)
        for key, value in {**ENVIRONMENT, **call.env}.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
        sys.argv = [str(ROOT / f"{call.script}.py"), *map(os.fsdecode, map(_word, call.argv))]
        torch.set_num_threads(call.threads)
        tiny.replace_networks()
        _limit(call)
        if call.before:
            call.before()
        code = errors.guard(SCRIPTS[call.script].main)
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _redirect(out: Path, err: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    for number, target in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, err)):
        source = target if isinstance(target, int) else os.open(target, flags, 0o666)
        os.dup2(source, number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(  # noqa: SIM115
        2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False
    )


def _limit(call: Call) -> None:
    if call.memory_bytes:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * os.sysconf("SC_PAGE_SIZE") + call.memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    if call.uid is not None:
        os.setgroups([])
        os.setgid(call.uid)
        os.setuid(call.uid)


@contextlib.contextmanager
def tmpfs(folder: Path, megabytes: float) -> Iterator[Path]:
    """A small file system of memory at `folder`.

    Raises:
        Skipped: it can't be mounted here.
    """
    folder.mkdir()
    size = f"size={round(megabytes * 1024)}k"
    if program("mount", "-t", "tmpfs", "-o", size, "faults", folder).wait(30) != 0:
        raise Skipped("no tmpfs can be mounted here (it takes root)")
    try:
        yield folder
    finally:
        program("umount", "-l", folder).wait(30)
