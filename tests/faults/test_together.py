"""Two processes at once on one folder or one cache, and the same command twice."""

import time

import pytest

from tests.faults.harness import CALLS, digest, end, goes_on, start

pytestmark = pytest.mark.faults


def both(first: tuple, second: tuple, folder, gap: float) -> list[int]:
    """The exit codes of two scripts at once; their stderr may have waiting lines and one other."""
    one = start(first, folder)
    time.sleep(gap)
    ended = [end(process) for process in (one, start(second, folder))]
    lines = [line for _, said in ended for line in said.splitlines()]
    assert sum(not line.startswith("waiting: ") for line in lines) <= 1, ended
    return [code for code, _ in ended]


@pytest.mark.parametrize("gap", [0, 0.3])
@pytest.mark.parametrize("part", ["1.1", "2.2", "3.1 3.4"])
def test_the_same_command_twice_at_once(tmp_path, reference, part, gap):
    wanted, _ = reference(CALLS[part])
    assert 0 in both(CALLS[part], CALLS[part], tmp_path, gap)
    goes_on(CALLS[part], tmp_path, wanted)


@pytest.mark.parametrize("part", ["2.2", "3.1"])
def test_two_folders_share_one_cache(tmp_path, reference, part):
    wanted, _ = reference(CALLS[part])
    other = (*CALLS[part], "--out", "out2")
    assert both(CALLS[part], other, tmp_path, 0) == [0, 0]
    for folder in ("out", "out2"):
        found = digest(tmp_path / folder)
        assert {name.replace("out2", "out"): value for name, value in found.items()} == wanted


def test_of_two_rates_in_one_folder_one_is_refused(tmp_path, reference):
    calls = (CALLS["2.2"], (*CALLS["2.2"], "--lr", "0.01"))
    codes = both(*calls, tmp_path, 0)
    assert sorted(codes) == [0, 2]
    winner = calls[codes.index(0)]
    goes_on(winner, tmp_path, reference(winner)[0])


def test_two_parts_at_once_are_both_in_the_results(tmp_path):
    assert both(CALLS["2.1"], CALLS["2.2"], tmp_path, 0.3) == [0, 0]
    found = digest(tmp_path / "out")["problem2/results.json"]
    assert set(found["parts"]) == {"2.1", "2.2"}
