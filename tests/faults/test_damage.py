"""Damaged files are refused by name or made again; a full disk is one line, and nothing is lost."""

import random
import resource
from functools import partial

import pytest

from tests.faults.harness import CALLS, copy, digest, end, goes_on, refuses, start

pytestmark = pytest.mark.faults
RUN = "out/problem2/runs/*/"
# For each kind of file: where it is, and whether it can be made again.
TARGETS = {
    "best.pt": (RUN + "best.pt", False),
    "images.npy": ("cache/*/images.npy", True),
    "about.json": ("cache/*/about.json", True),
    "results.json": ("out/problem2/results.json", False),
    "test.json": (RUN + "test.json", True),
    "metrics.jsonl": (RUN + "metrics.jsonl", True),
    "SHA256SUMS of a run": (RUN + "SHA256SUMS", True),
    "SHA256SUMS of results": ("out/problem2/SHA256SUMS", True),
    "manifest": ("out/problem3/3.1_manifest.csv", False),
}


def spoil(path, way: str) -> None:
    """Remove a file, flip a bit of it, or cut it short."""
    content = bytearray(path.read_bytes())
    place = random.Random(f"{path.name} {way}").randrange(len(content))
    path.unlink()
    if way == "cut":
        path.write_bytes(content[:place])
    elif way.startswith("flip"):
        content[place] ^= 1 << place % 8
        path.write_bytes(content)


@pytest.mark.parametrize("way", ["flip 1", "flip 2", "cut", "gone"])
@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_is_refused_by_name_or_made_again(tmp_path, reference, name, way):
    pattern, again = TARGETS[name]
    call = CALLS["3.1" if name == "manifest" else "2.2"]
    wanted, base = reference(call)
    copy(base, tmp_path)
    path = min(tmp_path.glob(pattern))
    if name == "manifest":
        data = next((tmp_path / "cache").glob("flowers-*")) / "train"
        call = (*call[:2], "--data", data, "--manifest", path, "--image-size", 32, "--out", "new")
    spoil(path, way)
    before = path.read_bytes() if path.exists() else None
    code, said = end(start(call, tmp_path))
    if code == 0 and (again or way == "gone"):
        assert digest(tmp_path / "out") == wanted
        return
    assert code == 2, said
    assert said.count(": error: ") == 1
    assert (path.name if path.name != "SHA256SUMS" else path.parent.name) in said
    if path.name != "SHA256SUMS":
        assert (path.read_bytes() if path.exists() else None) == before


def no_file_above(size: int) -> None:
    """Make the system refuse to write more than `size` bytes into a file, as a full disk would."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize("size", [100, 4_000, 30_000, 100_000])
@pytest.mark.parametrize("part", ["1.1", "2.2", "3.1 3.4"])
def test_a_full_disk_is_said_in_a_line_and_nothing_is_lost(tmp_path, reference, part, size):
    wanted, base = reference(CALLS[part])
    written = [path for name in ("out", "cache") for path in (base / name).rglob("*.*")]
    if max(path.stat().st_size for path in written if path.is_file()) <= size:
        pytest.skip("it writes no file of this size")
    process = start(CALLS[part], tmp_path, preexec_fn=partial(no_file_above, size))
    refuses(process, "out/", "cache")
    goes_on(CALLS[part], tmp_path, wanted)
