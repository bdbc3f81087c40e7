"""Values that are not finite: where they are found, and what the processes of a job say."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from common import job
from common.reporting.results import ROOT
from common.training import loop, parallel
from common.training.watch import NotFinite, first_bad_output
from tests.training import test_loop as tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("change", "module"),
    [
        (lambda net: net[1].running_var.fill_(torch.nan), "1"),
        (lambda net: net[6].bias.data.fill_(torch.inf), "6"),
    ],
)
def test_an_evaluation_that_is_not_finite_names_where_it_begins(change, module):
    network = tiny.network()
    change(network)
    with pytest.raises(NotFinite, match=rf"tiny set: no loss is finite: .* is that of {module};"):
        loop.evaluate(network, tiny.packed(), tiny.RECIPE, CPU)


def test_a_pass_without_a_bad_value_has_no_bad_output():
    images = torch.rand(2, 3, 8, 8)
    network = tiny.network()
    assert first_bad_output(network, lambda: network(images)) is None


def test_weights_that_decay_until_they_are_not_finite_are_no_result(tmp_path):
    with pytest.raises(NotFinite, match=r"smaller --(lr|weight-decay)"):
        tiny.train(tmp_path, replace(tiny.RECIPE, weight_decay=1e9))


def bad_as_rank_1(folder, direction):
    """Train with a NaN on the second process alone; what was raised there: (module, message)."""
    parallel.start(CPU)
    network = tiny.network()
    if job.rank() == 1:
        network[2].register_forward_hook(lambda *_: spoil(_[2], direction))
    recipe = replace(tiny.RECIPE, batch_size=6)
    try:
        loop.fit(network, tiny.packed(), tiny.packed(7), recipe, folder, CPU, {})
    except NotFinite as error:
        return error.module, str(error)
    finally:
        parallel.stop()
    return None


def spoil(output, direction):
    if direction == "output":
        return output * torch.nan
    if output.requires_grad:
        output.register_hook(lambda gradient: gradient * torch.inf)
    return output


@pytest.mark.parametrize(("direction", "module"), [("output", "2"), ("gradient", "2")])
def test_a_bad_value_in_one_process_stops_all_with_its_place(tmp_path, direction, module):
    raised = parallel.launch(2, bad_as_rank_1, tmp_path, direction)
    assert [raised[rank][0] for rank in range(2)] == [module, module]
    assert raised[0][1] == raised[1][1]


WAITING = """
import os, sys
sys.argv[0] = os.path.abspath("problem2_flowers.py")
import common.start
import torch
from common import errors
from common.training import parallel
parallel.JOIN_SECONDS = 2
def main():
    print("waits", file=sys.stderr, flush=True)
    parallel.start(torch.device("cpu"))
sys.exit(errors.guard(main))
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def waiting(rank, port):
    """A process alone in a job of two."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    variables = {name: str(value) for name, value in place.items()}
    return subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        env={**os.environ, **variables, "MASTER_ADDR": "127.0.0.1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_whose_job_does_not_come_says_so_and_ends(rank):
    with waiting(rank, free_port()) as process:
        _, said = process.communicate(timeout=60)
    _, error = said.splitlines()
    assert "problem2_flowers.py: error: not all 2 processes of this job came" in error
    assert process.returncode == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_that_waits_for_its_job(number):
    with waiting(0, free_port()) as process:
        assert "waits" in process.stderr.readline()
        time.sleep(0.5)
        process.send_signal(number)
        _, said = process.communicate(timeout=10)
    assert process.returncode == -number  # ended by the system, as a shell shows it: 128 + number
    assert said == ""


def test_of_two_trainings_in_one_folder_one_waits_and_then_finds_another_run(tmp_path):
    code = f"""
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
sys.argv[0] = "problem2_flowers.py"
from common import errors
from common.training import runs
from tests.training import test_loop as tiny
rate, folder = float(sys.argv[1]), Path({str(tmp_path)!r})
def main():
    with runs._alone_in(folder):
        print("in", flush=True)
        tiny.train(folder, replace(tiny.RECIPE, learning_rate=rate, epochs=60))
sys.exit(errors.guard(main))
"""
    processes = []
    for rate in ("0.02", "0.5"):
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code, rate],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        if len(processes) == 1:
            assert processes[0].stdout.readline() == "in\n"
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 2]
    assert said[0] == ""
    assert "best.pt is of another run: learning_rate 0.02 (now 0.5)" in said[1]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 60
    json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
