"""A full disk: one line names the file, and with space again the same command goes on."""

import resource
from functools import partial

import pytest

from tests.faults.harness import CALLS, goes_on, refuses, start

pytestmark = pytest.mark.faults


def no_file_above(size: int) -> None:
    """Let the system refuse to write more into a file, as a full disk does."""
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
