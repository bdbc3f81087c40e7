"""After SIGKILL, SIGTERM or Ctrl-C at any time, the same command goes on exactly."""

import signal
import time

import pytest

from tests.faults.harness import CALLS, end, goes_on, start, start_training

pytestmark = pytest.mark.faults
STEP_S = 0.3  # four steps of this make a training of 2.2
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@pytest.mark.parametrize("seconds", [0.0, 0.35, 0.7, 1.05, 1.25, 1.4])
def test_a_training_that_is_killed_goes_on_exactly(tmp_path, reference, seconds):
    wanted, _ = reference(CALLS["2.2"])
    process = start_training(CALLS["2.2"], tmp_path, STEP_S)
    time.sleep(seconds)
    process.kill()
    end(process)
    goes_on(CALLS["2.2"], tmp_path, wanted)


@pytest.mark.parametrize("number", STOPS)
@pytest.mark.parametrize("seconds", [0.1, 0.7])
def test_a_training_that_is_stopped_is_saved_and_goes_on_exactly(
    tmp_path, reference, number, seconds
):
    wanted, _ = reference(CALLS["2.2"])
    process = start_training(CALLS["2.2"], tmp_path, STEP_S)
    time.sleep(seconds)
    process.send_signal(number)
    code, said = end(process)
    assert code == 128 + number
    assert said.count("\n") == 1
    assert "the same command" in said
    assert list(tmp_path.rglob("last.pt"))
    goes_on(CALLS["2.2"], tmp_path, wanted)


def test_a_second_signal_ends_at_once(tmp_path):
    process = start_training(CALLS["2.2"], tmp_path, 60)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.poll() == 128 + signal.SIGINT


@pytest.mark.parametrize("seconds", [3, 5, 7, 9])
@pytest.mark.parametrize("part", ["1.1", "3.1 3.4"])
def test_a_script_that_is_killed_anywhere_goes_on_exactly(tmp_path, reference, part, seconds):
    wanted, _ = reference(CALLS[part])
    process = start(CALLS[part], tmp_path)
    time.sleep(seconds)
    process.kill()
    end(process)
    goes_on(CALLS[part], tmp_path, wanted)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_two_processes_that_are_stopped_go_on_exactly(tmp_path, reference, number):
    wanted, _ = reference(CALLS["2.2"], 2)
    process = start_training(CALLS["2.2"], tmp_path, STEP_S, ranks=2)
    process.send_signal(number)
    process.communicate(timeout=60)  # torchrun prints its own tracebacks
    goes_on(CALLS["2.2"], tmp_path, wanted, ranks=2)
